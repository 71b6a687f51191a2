// Tables of measured choices, which choose() looks into where one is in use.
#pragma once
#include <atomic>
#include <memory>
#include <unordered_map>
#include <vector>

#include "fastconv/tune.h"
#include "ops/choose.h"

namespace fastconv::ops {

struct ProductHash { size_t operator()(const Product& product) const noexcept; };

struct TuneTable { std::unordered_map<Product, Way, ProductHash> ways; };

Product product_of(const Problem& problem, const Machine& machine);

}  // namespace fastconv::ops
