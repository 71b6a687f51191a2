// The choice among a layer's algorithms: what each is thought to cost, and measurements in place of the model.
#pragma once
#include <cstdint>
#include <vector>

#include "fastconv/conv.h"
#include "fastconv/runtime.h"

namespace fastconv {

// How a product may be computed. rows and columns are direct sums: pixel rows and pixel columns, of a depthwise product
// lanes of channels and lanes of pixels.
enum class Way : int32_t { model = 0, rows = 1, columns = 2, fft = 3, winograd2 = 4, winograd4 = 5 };

// What a choice is keyed by: the product that a layer comes down to, per image. A strided gradient has several. Batch,
// threads, and whether a plan runs it are no part of it, since the bits of a result follow from the choice.
struct Product {
  Isa isa;
  DType dtype;
  bool channels_last;  // memory order
  int64_t groups, C, K;  // C and K are per group
  int64_t filter[3], out[3], stride[3], dilation[3];
  bool operator==(const Product&) const = default;
};

// `cost` is in steps of one vector's multiply-add, where there is an estimate; `obstacle`, where the way is not
// admitted: what it cannot compute, or not well enough.
struct Candidate {
  Way way;
  double cost = 0;
  const char* obstacle = nullptr;
};

struct ProductChoice {
  Product product;
  Way taken;
  bool tuned;  // by a table, and not by the model
  std::vector<Candidate> candidates;
};

// The products of a forward pass or an input gradient, without those of a padded frame; pointers are never followed.
Status conv_products(const ConvDesc& desc, Pass pass, const ConvOperands& operands, std::vector<ProductChoice>* out);

// Measurements that take the model's place for calls with Algorithm::automatic, and for the plans that they make. A
// table lives as long as the process: a call on another thread may be reading it. Ways that are not admitted are passed
// over. make_tune_table() returns a number above zero for use_tune_table(), where 0 means none, the default; which
// returns the one before.
struct TunedProduct {
  Product product;
  Way way;
};
int32_t make_tune_table(const std::vector<TunedProduct>& products);
int32_t use_tune_table(int32_t table);

}  // namespace fastconv
