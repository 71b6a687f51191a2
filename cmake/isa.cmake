# The instruction sets, and the only -m flags of the build. Adding one: a line in FASTCONV_ISAS, its flags, a
# csrc/kernels/vec_<isa>.h and a row in csrc/dispatch/cpu_features.cc.

set(FASTCONV_ISAS portable)
set(FASTCONV_ISA_FLAGS_portable)
set(FASTCONV_ISA_DEFINITIONS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND FASTCONV_ISAS avx2 avx512)
  set(FASTCONV_ISA_FLAGS_avx2 -mavx2 -mfma)
  set(FASTCONV_ISA_FLAGS_avx512
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
  set(FASTCONV_ISA_DEFINITIONS FASTCONV_HAVE_AVX2 FASTCONV_HAVE_AVX512)
endif()

# What every kernel object is compiled with. -ffp-contract=off: a multiply and an add are fused where the source says
# so and nowhere else, so that results agree between compilers. No trapping maths: comparisons may be if-converted, the
# values stay IEEE. No stack protector, thread-safe statics, exceptions or RTTI: each would call into a library.
set(FASTCONV_KERNEL_FLAGS
  -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti -fno-lto
  -fno-stack-protector -fno-threadsafe-statics -Wno-psabi)

# One OBJECT library an ISA from csrc/kernels/<family>.cc, and the target fastconv_symbols, which fails the build when
# an object defines or needs anything outside its own namespace.
function(fastconv_add_kernels)
  list(TRANSFORM ARGN PREPEND csrc/kernels/ OUTPUT_VARIABLE sources)
  list(TRANSFORM sources APPEND .cc)
  set(stamps)
  foreach(isa IN LISTS FASTCONV_ISAS)
    set(target fastconv_kernels_${isa})
    add_library(${target} OBJECT ${sources})
    target_include_directories(${target} PRIVATE csrc csrc/include)
    target_compile_definitions(${target} PRIVATE FASTCONV_ISA_NS=${isa})
    target_compile_options(${target} PRIVATE ${FASTCONV_KERNEL_FLAGS} ${FASTCONV_ISA_FLAGS_${isa}})
    set(stamp ${CMAKE_CURRENT_BINARY_DIR}/symbols_${isa}.stamp)
    set(script ${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_symbols.py)
    add_custom_command(
      OUTPUT ${stamp}
      COMMAND ${Python_EXECUTABLE} ${script} --nm ${CMAKE_NM} --isa ${isa} $<TARGET_OBJECTS:${target}>
      COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
      DEPENDS $<TARGET_OBJECTS:${target}> ${script}
      COMMENT "Checking the symbols of the ${isa} kernels"
      COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND stamps ${stamp})
  endforeach()
  # Part of ALL and no dependency of the library: the bindings need not wait for the kernels.
  add_custom_target(fastconv_symbols ALL DEPENDS ${stamps})
endfunction()
