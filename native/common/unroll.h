// Over loops of fixed length whose arrays must live in registers: GCC leaves long bodies rolled, and their arrays in memory.
#pragma once

#define TENSURE_UNROLL _Pragma("GCC unroll 32")
