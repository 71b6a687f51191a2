// Two vectors side by side as one, for code that is a template over the vector: their instructions alternate, so that
// each has the other's latency to fill, which the reorder window alone does not find for chains of 50 cycles.
#pragma once
#include "kernels/vec.h"

namespace fastconv::FASTCONV_ISA_NS {

template <class V>
struct Pair {
  using T = typename V::T;
  static constexpr int kLanes = 2 * V::kLanes, kTable = V::kTable;
  V a, b;

  static Pair zero() { return {V::zero(), V::zero()}; }
  static Pair set1(T x) { return {V::set1(x), V::set1(x)}; }
  static Pair load(const T* p) { return {V::load(p), V::load(p + V::kLanes)}; }
  void store(T* p) const { a.store(p), b.store(p + V::kLanes); }
  void stream(T* p) const { a.stream(p), b.stream(p + V::kLanes); }

  friend Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
  friend Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
  friend Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
  friend Pair operator/(Pair x, Pair y) { return {x.a / y.a, x.b / y.b}; }
  friend Pair fma(Pair x, Pair y, Pair z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }
  friend Pair max(Pair bound, Pair x) { return {max(bound.a, x.a), max(bound.b, x.b)}; }
  friend Pair min(Pair bound, Pair x) { return {min(bound.a, x.a), min(bound.b, x.b)}; }
  static Pair abs(Pair x) { return {V::abs(x.a), V::abs(x.b)}; }
  static Pair signed_as(Pair x, Pair size) { return {V::signed_as(x.a, size.a), V::signed_as(x.b, size.b)}; }
  static Pair turned_as(Pair x, Pair size) { return {V::turned_as(x.a, size.a), V::turned_as(x.b, size.b)}; }
  static Pair select_less(Pair x, Pair y, Pair u, Pair v) {
    return {V::select_less(x.a, y.a, u.a, v.a), V::select_less(x.b, y.b, u.b, v.b)};
  }
  static Pair select_less_equal(Pair x, Pair y, Pair u, Pair v) {
    return {V::select_less_equal(x.a, y.a, u.a, v.a), V::select_less_equal(x.b, y.b, u.b, v.b)};
  }
  static Pair round(Pair x) { return {V::round(x.a), V::round(x.b)}; }
  static Pair exp2i(Pair n) { return {V::exp2i(n.a), V::exp2i(n.b)}; }
  static Pair scale(Pair x, Pair n) { return {V::scale(x.a, n.a), V::scale(x.b, n.b)}; }
  static Pair without_low(Pair x, int n) { return {V::without_low(x.a, n), V::without_low(x.b, n)}; }
  static Pair shift_right(Pair x, int n) { return {V::shift_right(x.a, n), V::shift_right(x.b, n)}; }
  template <class Table>
  static Pair lookup(const Table& table, Pair i) {
    return {V::lookup(table, i.a), V::lookup(table, i.b)};
  }
  template <class Table>
  static Pair power(const Table& table, Pair i) {
    return {V::power(table, i.a), V::power(table, i.b)};
  }
  struct Mask { typename V::Mask a, b; };
  static Mask greater(Pair x, Pair y) { return {V::greater(x.a, y.a), V::greater(x.b, y.b)}; }
  static bool any_above(Pair x, T bound) { return V::any_above(max(x.a, x.b), bound); }
  static Pair select(Mask m, Pair x, Pair y) { return {V::select(m.a, x.a, y.a), V::select(m.b, x.b, y.b)}; }
};

}  // namespace fastconv::FASTCONV_ISA_NS
