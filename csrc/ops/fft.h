// Runs depthwise products by the fast Fourier transform, tile by tile (overlap-save): the circular correlation of a
// tile with the filter is the right one as long as the filter stays within the tile.
#pragma once
#include "ops/dense.h"

namespace fastconv::ops {

// The lengths that a tile may have along one of two axes, and those of a one-dimensional one, as rows and columns.
inline constexpr int64_t kFftLengths[] = {1, 8, 12, 16, 24, 32, 48, 64, 96, 128};
struct FftLinear { int64_t rows, columns; };
inline constexpr FftLinear kFftLinear[] = {{1, 32},  {1, 48},  {1, 64},  {1, 96},  {1, 128},  {12, 16},
                                           {16, 16}, {16, 24}, {16, 32}, {24, 32}, {32, 32},  {32, 48},
                                           {32, 64}, {48, 64}, {64, 64}, {64, 96}, {64, 128}, {96, 128}};

// Elements of the spectra of all filters: (blocks of W channels)(points)(real, imaginary)(W), or
// (channels)(points)(real, imaginary) where lanes are tiles.
int64_t spectra_size(const DenseJob& job, const Choice& choice, const Machine& machine);
template <class T>
Status pack_spectra(const DenseJob& job, const Choice& choice, const Machine& machine, const KernelTable<T>& kernels,
                    T* spectra);

// As run_depthwise(), for runs whose choice is fft. Their packed filters end in the spectra, and begin with what the
// direct product reads, which computes the tiles that are not finite.
template <class T>
Status run_fft(const std::vector<Run<T>>& runs, const Machine& machine, const KernelTable<T>& kernels,
               const Finish<T>& finish, const InputMap<T>& map, int64_t gate_batch_stride, bool accumulate);
template <class T>
int64_t fft_workspace(const DenseJob& job, const Choice& choice, const Machine& machine);

}  // namespace fastconv::ops
