// What an epilogue applies to each element last.
#pragma once

namespace tensure {

enum class Activation : int { none, relu, relu6, silu };

}  // namespace tensure
