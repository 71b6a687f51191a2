# The modules of the GPU. FASTCONV_CUDA=ON builds _cuda with nvcc; FASTCONV_CUDA_HOST=ON builds _cuda_host, the same
# sources by the host's compiler with fibers for threads, for the tests.

option(FASTCONV_CUDA "Build the module for NVIDIA GPUs, _cuda (takes nvcc 13 and some minutes)" OFF)
option(FASTCONV_CUDA_HOST "Build _cuda_host: the GPU's kernels on fibers, for tests without a GPU" OFF)
option(FASTCONV_CUDA_KEEP "Leave the cubins in the build folder, for test_cuda_codegen" OFF)
set(FASTCONV_CUDA_ARCHITECTURES "80-real;90a-real;80-virtual" CACHE STRING
  "What _cuda is compiled for; one that fits the GPU at hand, such as 90a-real, builds fastest")

file(GLOB FASTCONV_CUDA_KERNELS CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB FASTCONV_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cc)
set(FASTCONV_CUDA_BINDING csrc/bindings/cuda/module.cc)

# The binding and what it needs of the baseline: shapes and checks.
function(fastconv_add_cuda_module name targets compiler)
  fastconv_add_module(${name} ${FASTCONV_CUDA_BINDING} ${FASTCONV_CUDA_KERNELS} ${FASTCONV_CUDA_SOURCES} ${ARGN})
  target_compile_definitions(${name} PRIVATE FASTCONV_CUDA_MODULE=${name} "FASTCONV_VERSION=\"${PROJECT_VERSION}\""
    "FASTCONV_CUDA_TARGETS=\"${targets}\"" "FASTCONV_CUDA_COMPILER=\"${compiler}\"")
endfunction()

if(FASTCONV_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR
      "FASTCONV_CUDA=ON needs nvcc 13, which was not found: install the CUDA toolkit and put nvcc on PATH, or name it by "
      "CUDACXX=/path/to/nvcc or -DCMAKE_CUDA_COMPILER=/path/to/nvcc. Without FASTCONV_CUDA fastconv builds for the CPU.")
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
    message(FATAL_ERROR "FASTCONV_CUDA=ON needs nvcc 13; ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}.")
  endif()
  find_package(CUDAToolkit REQUIRED)
  string(REPLACE ";" " " targets "${FASTCONV_CUDA_ARCHITECTURES}")
  message(STATUS "_cuda for ${targets}: one that fits the GPU builds in a third of the time, "
    "-DFASTCONV_CUDA_ARCHITECTURES=90a-real")
  fastconv_add_cuda_module(_cuda "${targets}" "nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
  set_target_properties(_cuda PROPERTIES
    CUDA_ARCHITECTURES "${FASTCONV_CUDA_ARCHITECTURES}" CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON
    CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  target_compile_options(_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-O3 --expt-relaxed-constexpr>)
  if(FASTCONV_CUDA_KEEP)
    file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cubins)
    target_compile_options(_cuda PRIVATE
      "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:--keep --keep-dir ${CMAKE_CURRENT_BINARY_DIR}/cubins>")
  endif()
  target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
endif()

if(FASTCONV_CUDA_HOST)
  file(GLOB shim CONFIGURE_DEPENDS tests/cuda_host/shim/*.cc tests/cuda_host/*.cc)
  set(planted tests/cuda_host/planted.cu)
  # -x c++: where CUDA is no language of the build, CMake would leave *.cu out; in a build of both modules it would give
  # them to nvcc. So they are compiled through copies of another name.
  set(host_sources)
  foreach(source IN LISTS FASTCONV_CUDA_KERNELS planted)
    get_filename_component(stem ${source} NAME_WE)
    get_filename_component(path ${source} ABSOLUTE)
    set(copy ${CMAKE_CURRENT_BINARY_DIR}/cuda_host/${stem}_cu.cc)
    file(CONFIGURE OUTPUT ${copy} CONTENT "#include \"${path}\"\n")
    list(APPEND host_sources ${copy})
  endforeach()
  set(FASTCONV_CUDA_KERNELS ${host_sources})
  # Twice: for the tests' process, and with the sanitizers, for a process that has their runtime preloaded.
  foreach(module _cuda_host _cuda_host_sanitized)
    fastconv_add_cuda_module(${module} "fibers on the host" "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
      ${shim})
    target_include_directories(${module} BEFORE PRIVATE tests/cuda_host/shim tests/cuda_host)
    target_compile_definitions(${module} PRIVATE FASTCONV_CUDA_HOST)
    # A GPU's compiler fuses where it likes; here nothing is fused, so that two builds agree. Its pragmas are not known.
    target_compile_options(${module} PRIVATE -ffp-contract=off -Wno-unknown-pragmas)
  endforeach()
  # GCC's array-bounds warnings know nothing of what its own instrumentation adds.
  target_compile_options(_cuda_host_sanitized PRIVATE
    -O1 -g1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -Wno-maybe-uninitialized)
  target_link_options(_cuda_host_sanitized PRIVATE -fsanitize=address,undefined)
endif()
