from ._chat import ChatTemplate, render_chat
from ._sampling import Sampled, Sampler, SamplingParams, sample
from ._stop import StopMatcher
from ._tokenizer import Tokenizer, TokenStream

__all__ = [
    "ChatTemplate",
    "Sampled",
    "Sampler",
    "SamplingParams",
    "StopMatcher",
    "TokenStream",
    "Tokenizer",
    "render_chat",
    "sample",
]
