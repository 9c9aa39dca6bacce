# tensure_kernel_family(NAME [FILES...]): compile native/NAME/{NAME.cc,target.cc,FILES} and native/bindings/NAME.cc into _native.
#
# NAME.cc (dispatch, threads) and FILES are built for the platform's baseline. target.cc is built once for each instruction set, with
# that set's flags and TENSURE_ISA / TENSURE_VECTOR_BYTES defined. -ffp-contract=off: a multiply and an add stay two roundings, so that
# every instruction set gives the same bits; a family that wants fused multiply-adds says so in its own folder.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(TENSURE_ISAS v2 v3 v4)
  set(TENSURE_ISA_v2_FLAGS -march=x86-64-v2)
  set(TENSURE_ISA_v2_BYTES 16)
  set(TENSURE_ISA_v3_FLAGS -march=x86-64-v3)
  set(TENSURE_ISA_v3_BYTES 32)
  set(TENSURE_ISA_v4_FLAGS -march=x86-64-v4 -mprefer-vector-width=512)
  set(TENSURE_ISA_v4_BYTES 64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(TENSURE_ISAS neon) # part of the aarch64 baseline
  set(TENSURE_ISA_neon_FLAGS)
  set(TENSURE_ISA_neon_BYTES 16)
else()
  set(TENSURE_ISAS base)
  set(TENSURE_ISA_base_FLAGS)
  set(TENSURE_ISA_base_BYTES 16)
endif()

function(tensure_kernel_family name)
  set(folder "${CMAKE_SOURCE_DIR}/native/${name}")
  set(baseline "${folder}/${name}.cc")
  foreach(file IN LISTS ARGN)
    list(APPEND baseline "${folder}/${file}")
  endforeach()
  target_sources(_native PRIVATE ${baseline} "${CMAKE_SOURCE_DIR}/native/bindings/${name}.cc")
  if(OpenMP_CXX_FOUND)
    set_source_files_properties(${baseline} PROPERTIES COMPILE_OPTIONS "${OpenMP_CXX_FLAGS}")
    target_link_libraries(_native PRIVATE OpenMP::OpenMP_CXX)
  endif()
  foreach(isa IN LISTS TENSURE_ISAS)
    set(object "tensure_${name}_${isa}")
    add_library(${object} OBJECT "${folder}/target.cc")
    target_include_directories(${object} PRIVATE "${CMAKE_SOURCE_DIR}/native")
    target_compile_definitions(${object} PRIVATE TENSURE_ISA=${isa} TENSURE_VECTOR_BYTES=${TENSURE_ISA_${isa}_BYTES})
    target_compile_options(${object} PRIVATE -O3 -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra
                                             ${TENSURE_ISA_${isa}_FLAGS})
    target_link_libraries(_native PRIVATE ${object})
  endforeach()
endfunction()
