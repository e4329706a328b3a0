"""Sound encoders: what is batched together does not matter, towers hear what transformers hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders import CheckpointError, load, preset, train
from braid.encoders.backbones.audio import LogMelCnn, LogMelRnn
from braid.encoders.backbones.base import Encoder
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.backbones.spectrogram import LogMel, SpectrogramAugmentation
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.config import EncoderConfig, Limits
from tests.encoders.material import samples, wav

CPU = torch.device("cpu")
AST: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_mel_bins": 32,
    "max_length": 96,
}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "num_mel_bins": 32,
    "max_source_positions": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CLAP: dict[str, Any] = {
    "patch_embeds_hidden_size": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "hidden_size": 32,
    "num_mel_bins": 64,
    "spec_size": 256,
}
TOWERS = {"ast": AST, "whisper": WHISPER, "clap-audio": CLAP}
SMALL: dict[str, Any] = {"rate": 8000, "seconds": 2.0, "mels": 32}
MADE: dict[str, dict[str, Any]] = {
    "logmel-cnn": {**SMALL, "channels": 8, "depth": 3},
    "logmel-rnn": {**SMALL, "hidden": 16, "layers": 1},
    "speech-embedding": {"seconds": 2.0},
    **{kind: {"config": fields} for kind, fields in TOWERS.items()},
}


def create(kind: str, **more: Any) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(kind=kind, options={**MADE[kind], **more})
    return encoder_class("audio", config).create(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_a_sound_is_the_same_in_any_company(kind: str) -> None:
    encoder = create(kind)
    sounds = [encoder.prepare(wav(300, seconds), Limits())[0] for seconds in (0.2, 0.9, 0.35)]
    together = encode_all(encoder, sounds, CPU, tokens=True)
    assert together.tokens_BTF is not None
    assert together.mask_BT is not None
    assert together.tokens_BTF.shape[2] == encoder.token_width
    for row, sound in enumerate(sounds):
        alone = encode_all(encoder, [sound], CPU, tokens=True)
        assert torch.allclose(alone.pooled_BF[0], together.pooled_BF[row], atol=1e-5)
        assert alone.mask_BT is not None
        assert int(alone.mask_BT.sum()) == int(together.mask_BT[row].sum())
    assert not torch.allclose(together.pooled_BF[0], together.pooled_BF[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_trained_written_and_loaded(kind: str, tmp_path: Path) -> None:
    tiny = preset("tiny")
    encoder = EncoderConfig(kind=kind, options=MADE[kind], train_last=1)
    model = replace(tiny.model, encoders={"text": tiny.model.encoders["text"], "audio": encoder})
    config = replace(tiny, model=model, epochs=1, refit=False, encoder_batch=8)
    made = [replace(sample, image=None) for sample in samples(48)]
    train(made, config, out=tmp_path / "v", name="v", version=1, seed=0)
    load(tmp_path / "v", device="cpu").check()


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_runs_in_bf16(kind: str) -> None:
    encoder = create(kind)
    sounds = [encoder.prepare(wav(300, 0.5), Limits())[0]]
    exact = encode_all(encoder, sounds, CPU).pooled_BF
    with torch.autocast("cpu", torch.bfloat16):
        rough = encode_all(encoder, sounds, CPU).pooled_BF
    assert torch.allclose(rough.float(), exact, atol=0.05)


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_varies_what_it_trains_on(kind: str) -> None:
    encoder = create(kind, seconds=0.9, noise_db=[0.0, 0.0], lead=0.0, gaps=0, speed=[0.5, 0.5])
    sound, _ = encoder.prepare(wav(300, 0.6), Limits())
    rng = np.random.default_rng(0)
    one, other = encoder.vary(sound, rng), encoder.vary(sound, rng)
    assert one.dtype == np.int16
    assert len(one) == len(other) == int(0.9 * len(sound) / 0.6)  # twice as long, then cut
    assert (one != other).mean() > 0.9
    assert bool(encode_all(encoder, [one], CPU).pooled_BF.isfinite().all())


@pytest.mark.parametrize("kind", TOWERS)
def test_a_towers_sounds_are_varied_where_an_option_says_how(kind: str) -> None:
    encoder, rng = create(kind), np.random.default_rng(0)
    sound, _ = encoder.prepare(wav(300, 0.3), Limits())
    assert encoder.vary(sound, rng) is sound
    assert (create(kind, noise_share=1.0).vary(sound, rng)[:100] != sound[:100]).any()


@pytest.mark.parametrize("length", [0, 1])
def test_what_is_too_short_to_vary_stays(length: int) -> None:
    sound = np.ones(length, np.int16)
    assert create("logmel-cnn", cut=0.4).vary(sound, np.random.default_rng(0)) is sound


def test_a_tower_that_pads_on_the_left_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"padding_side must be 'right', is 'left'"):
        create("whisper", extractor={"padding_side": "left"})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"speed": 1.0}, r"speed must be a lower and an upper bound, is 1.0"),
        ({"noise_db": [3.0]}, r"noise_db must be a lower and an upper bound, is \[3.0\]"),
        ({"speed": [1.1, 0.9]}, r"speed must be a lower and an upper bound, is \[1.1, 0.9\]"),
        ({"speed": [0.0, 1.0]}, r"speed must be above 0, is \[0.0, 1.0\]"),
        ({"noise_share": 1.5}, "noise_share must be from 0 to 1, is 1.5"),
        ({"lead": -1}, "lead must be at least 0, is -1"),
        ({"gaps": -1}, "gaps must be at least 0, is -1"),
        ({"cut": 0.5}, "cut must be at least 0 and below 0.5, is 0.5"),
    ],
)
def test_a_bad_variation_is_named(option: dict[str, Any], message: str) -> None:
    for kind in ("logmel-cnn", "ast"):
        with pytest.raises(ValueError, match=message):
            create(kind, **option)


def test_no_short_sound_breaks_a_tower() -> None:
    for kind in TOWERS:
        encoder = create(kind)
        sound, _ = encoder.prepare(wav(300, 0.003), Limits())
        assert bool(encode_all(encoder, [sound], CPU).pooled_BF.isfinite().all())


def written(kind: str, folder: Path) -> Path:
    """A checkpoint as transformers writes it, with a feature extractor of its own."""
    import transformers as t

    torch.manual_seed(1)
    if kind == "ast":
        t.ASTModel(t.ASTConfig(**AST)).save_pretrained(folder)
        t.ASTFeatureExtractor(
            num_mel_bins=32, max_length=96, mean=-3.0, std=2.0, sampling_rate=8000
        ).save_pretrained(folder)
    elif kind == "whisper":
        t.WhisperModel(t.WhisperConfig(**WHISPER)).save_pretrained(folder)
        t.WhisperFeatureExtractor(feature_size=32, chunk_length=1).save_pretrained(folder)
    else:
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = t.ClapConfig(
            audio_config=CLAP,
            text_config={**text, "intermediate_size": 16, "vocab_size": 40},
            projection_dim=8,
        )
        t.ClapModel(config).save_pretrained(folder)
        t.ClapFeatureExtractor(feature_size=64, truncation="rand_trunc").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_hears_what_transformers_hears(kind: str, tmp_path: Path) -> None:
    import transformers as t

    folder = written(kind, tmp_path)
    config = EncoderConfig(kind=kind, source=str(folder))
    encoder = encoder_class("audio", config).create(config).eval()
    rate = int(encoder.settings["extractor"]["sampling_rate"])
    sound, _ = encoder.prepare(wav(440, 0.8, rate=rate), Limits())
    features = encode_all(encoder, [sound], CPU, tokens=True)
    assert features.tokens_BTF is not None
    wave = sound.astype(np.float32) / 32768
    how: dict[str, Any] = {"sampling_rate": rate, "return_tensors": "pt"}
    with torch.no_grad():
        if kind == "ast":
            inputs = t.ASTFeatureExtractor.from_pretrained(folder)(wave, **how)
            wanted = t.ASTModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 2:]
        elif kind == "whisper":
            inputs = t.WhisperFeatureExtractor.from_pretrained(folder)(wave, **how)
            net = t.WhisperModel.from_pretrained(folder).eval()
            wanted = net.encoder(inputs.input_features).last_hidden_state
        else:
            inputs = t.ClapFeatureExtractor.from_pretrained(folder)(wave, **how)
            net = t.ClapModel.from_pretrained(folder).eval().audio_model
            wanted = net(**inputs).last_hidden_state.flatten(2).transpose(1, 2)
    assert torch.allclose(features.tokens_BTF, wanted, atol=1e-4)


def test_an_option_that_contradicts_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    folder = written("ast", tmp_path)
    for options, words in (
        ({"extractor": {"sampling_rate": 16000}}, "sampling_rate is 16000 in the options, 8000"),
        ({"config": {"hidden_size": 64}}, "hidden_size is 64 in the options, 32"),
        ({"seconds": 9.0}, "seconds must be above 0 and at most 0.96, is 9"),
    ):
        config = EncoderConfig(kind="ast", source=str(folder), options=options)
        with pytest.raises(CheckpointError, match=words):
            encoder_class("audio", config).create(config)
    with pytest.raises(CheckpointError, match="no ASTConfig at"):
        encoder_class("audio", config).create(replace(config, source=str(tmp_path / "none")))


def test_the_spectrogram_forgets_loudness_and_the_microphones_colour() -> None:
    rng = np.random.default_rng(0)
    wave_N = (3000 * rng.normal(size=6000) * np.sin(np.arange(6000) / 900)).astype(np.int16)
    quiet_N = (wave_N // 8).astype(np.int16)

    def seen(norm: str, wave: np.ndarray) -> torch.Tensor:
        front = LogMel(8000, 24, 256, 80, floor=1e-4, norm=norm).eval()
        padded = np.concatenate([wave, np.zeros(256, dtype=np.int16)])
        result: torch.Tensor = front(torch.from_numpy(padded[None]), torch.tensor([len(wave)]))[0]
        return result

    for norm in ("sound", "band"):
        assert torch.allclose(seen(norm, wave_N), seen(norm, quiet_N), atol=0.1)
    coloured = np.convolve(wave_N, [1.0, -0.7], mode="same").astype(np.int16)
    off = {n: (seen(n, wave_N) - seen(n, coloured)).abs().mean().item() for n in ("sound", "band")}
    assert off["band"] < 0.5 * off["sound"]
    with pytest.raises(ValueError, match="norm"):
        LogMel(8000, 24, 256, 80, norm="nothing")


def test_variation_bends_hides_and_is_off_when_not_training() -> None:
    torch.manual_seed(0)
    frames = torch.rand(4, 20, 30) + 1.0
    lengths = torch.tensor([30, 20, 10, 30])
    bent, count = SpectrogramAugmentation(tempo=0.5).warp(frames, lengths)
    assert bent.shape[2] == int(count.max())
    assert not torch.equal(count, lengths)
    assert bool(((bent >= frames.min()) & (bent <= frames.max())).all())
    same, _ = SpectrogramAugmentation().warp(frames, lengths)
    assert same is frames
    hidden = SpectrogramAugmentation(masks=2).mask_spans(frames, lengths)
    blank = (hidden == 0).float().mean().item()
    assert 0.02 < blank < 0.65
    tilted, _ = SpectrogramAugmentation(tilt=1.0).warp(frames, lengths)
    difference = tilted - frames
    assert torch.allclose(difference, difference[:, :, :1].expand_as(difference), atol=1e-5)
    encoder = LogMelCnn(**SMALL, channels=4, depth=2, variation={"tilt": 3.0, "masks": 2}).eval()
    sound = encoder.prepare(wav(), Limits())[0]
    one, two = (encode_all(encoder, [sound], CPU).pooled_BF for _ in range(2))
    assert torch.equal(one, two)


def test_mixing_gives_a_sound_anothers_bands_and_keeps_its_shape() -> None:
    torch.manual_seed(0)
    shape_BMT = torch.randn(2, 6, 50)
    log_BMT = shape_BMT * torch.tensor([1.0, 4.0])[:, None, None]
    log_BMT[1] += torch.linspace(0, 10, 6)[:, None]
    weight_B1T = torch.ones(2, 1, 50)
    assert SpectrogramAugmentation().mix_statistics(log_BMT, weight_B1T) is log_BMT
    drawn = [
        SpectrogramAugmentation(mix=1.0).mix_statistics(log_BMT, weight_B1T)[0] for _ in range(60)
    ]
    spreads = [float(one.std(1).mean()) for one in drawn]
    means = [float(one[5].mean()) for one in drawn]
    assert min(spreads) < 1.2  # itself
    assert max(spreads) > 3.5  # the other's
    assert -1.0 < min(means) < 1.0
    assert max(means) > 8.0
    for one in drawn:  # each band is only moved and stretched
        both = torch.stack([one[3], log_BMT[0, 3]])
        assert float(torch.corrcoef(both)[0, 1]) == pytest.approx(1.0, abs=1e-4)
    few = [
        SpectrogramAugmentation(mix=0.1).mix_statistics(log_BMT, weight_B1T)[0] for _ in range(100)
    ]
    kept = sum(torch.allclose(one, log_BMT[0], atol=1e-4) for one in few)
    assert kept > 80
    # Frames that are not there have no say.
    weight_B1T[0, 0, 25:] = 0.0
    before, after = log_BMT.clone(), log_BMT
    after[0, :, 25:] = 1e3
    for seed in range(10):  # in some of them each gets the other's
        result = []
        for one in (before, after):
            torch.manual_seed(seed)
            result.append(
                SpectrogramAugmentation(mix=1.0).mix_statistics(one, weight_B1T)[:, :, :25]
            )
        assert torch.allclose(result[0], result[1], atol=1e-4)


def test_ends_are_cut_and_nothing_else_where_it_says_so() -> None:
    ramp = np.arange(1, 8001, dtype=np.int16)
    encoder = LogMelRnn(**SMALL, speed=[1.0, 1.0], noise_share=0.0, lead=0.0, gaps=0, cut=0.25)
    rng = np.random.default_rng(0)
    lengths = [len(encoder.vary(ramp, rng)) for _ in range(50)]
    assert max(lengths) >= 7990
    assert 4000 <= min(lengths) < 6500


def test_noise_is_added_at_the_ratio_and_only_to_its_share() -> None:
    quiet: dict[str, Any] = {"speed": [1.0, 1.0], "noise_db": [0.0, 0.0]}
    rng = np.random.default_rng(0)
    tone = (20000 * np.sin(np.arange(12000) / 9)).astype(np.int16)
    never = LogMelRnn(**SMALL, **quiet, noise_share=0.0)
    clean = [never.vary(tone, rng).astype(float) for _ in range(20)]
    always = LogMelRnn(**SMALL, **quiet)
    noisy = [always.vary(tone, rng).astype(float) for _ in range(20)]

    def rough(wave: np.ndarray) -> float:
        return float(np.mean(np.diff(wave) ** 2) / np.mean(wave**2))

    assert np.mean([rough(w) for w in clean]) < 0.1
    # White noise of equal power: its differences have twice its power, half of the whole is it,
    # and a little more than half where the sound is silent and the noise is not.
    assert 0.95 < np.mean([rough(w) for w in noisy]) < 1.4
    with pytest.raises(ValueError, match="cell"):
        LogMelRnn(**SMALL, cell="mgu")
