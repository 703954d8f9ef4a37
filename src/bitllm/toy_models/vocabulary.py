"""A word-level tokenizer for the demo's small neighbours, with a chat template as real chat models have one."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bitllm.data.prompt import INSTRUCTIONS, plain_caption

# `<eos>` is not token 2: CLIPTextModel treats an end token of 2 as "the largest id" (a legacy of its first release)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<unk>", "<eos>", "<brain>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _spaced(text: str) -> str:
    """As the normaliser leaves it."""
    return text.replace(".", " . ").replace(",", " , ")


def make_word_tokenizer(captions: Iterable[str], *, wrap: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of the words of ``captions`` and of the instructions.

    Parameters
    ----------
    captions
        Training captions.
    wrap
        Whether every text gets ``<bos>`` and ``<eos>`` around it, as CLIP wants it.
    """
    counts = Counter(word for caption in captions for word in _spaced(plain_caption(caption)).split())
    words = [*SPECIAL_TOKENS, *sorted({*counts, *" ".join(INSTRUCTIONS).split(), ",", "."})]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(".", " . "), normalizers.Replace(",", " , ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if wrap:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>",
            special_tokens=[("<bos>", words.index("<bos>")), ("<eos>", words.index("<eos>"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<brain>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
