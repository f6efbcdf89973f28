"""Which checkpoints a user may open, and how."""

import json
import shutil
from functools import partial

import pytest

from deepseek import SamplingParams
from deepseek.checkpoints.loading import fingerprint, load
from deepseek.checkpoints.saving import save_checkpoint
from deepseek.inference.generation_record import make_record, parse_record, replay
from deepseek.ui.server import model_registry
from deepseek.ui.tabs import model_info

HUB_ID = "org/demo@main"


@pytest.mark.parametrize("path", ["/etc", "tests", "", None, 5, "a/b/c"])
def test_what_is_no_checkpoint_is_refused(path):
    with pytest.raises(ValueError, match="^checkpoint "):
        model_registry.open_requested(path, "assets/demo")


def test_a_public_space_opens_no_folder_but_runs_and_only_small_models_of_the_hub(
    checkpoint, tmp_path, monkeypatch, local_hub
):
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    with pytest.raises(ValueError, match="here it must be one of .*, or a Hub id"):
        model_registry.open_requested(checkpoint, "assets/demo")
    monkeypatch.setattr(model_registry, "RUNS", tmp_path)
    write = partial(shutil.copytree, checkpoint, dirs_exist_ok=True)
    checkpoints = [str(save_checkpoint(tmp_path / "run", step, write)) for step in (100, 200)]
    for path in checkpoints:  # the older one too, which the Train tab offers
        assert model_registry.open_requested(path, "assets/demo")[0].name_or_path == path
    with pytest.raises(ValueError, match="here it must be one of"):
        model_registry.open_requested(f"{checkpoints[0]}/../step-000100", "assets/demo")
    monkeypatch.setattr(model_registry, "MAX_PUBLIC_BYTES", 1000)
    with pytest.raises(ValueError, match="checkpoint 'org/demo' needs .* GiB are allowed here"):
        model_registry.open_requested("org/demo", "assets/demo")


def test_a_hub_id_is_downloaded_opened_described_and_recorded(local_hub, checkpoint, monkeypatch):
    progress = list(model_registry.opening(f" {HUB_ID} ", "assets/demo"))
    assert progress[0] == f"Looking for `{HUB_ID}` on the Hub…" and progress[-1].startswith("Opening…")
    model, tokenizer = model_registry.get_model(HUB_ID)
    assert model.name_or_path == HUB_ID and not model_registry.running_downloads()
    rows = dict(model_info.facts(model))
    commit = local_hub.commit("models/org/demo")
    assert rows["origin"] == f"the Hugging Face Hub, {HUB_ID}, commit {commit[:12]}"
    assert rows["checkpoint"] == f"{HUB_ID}, weights {fingerprint(checkpoint)[:12]}"
    assert model_info.card(HUB_ID) == "# The card of org/demo"
    params = SamplingParams(max_new_tokens=3, seed=1)
    tokens = [token for (token,) in model_registry.stream_batch(model, tokenizer, "Once", [params])]
    record = parse_record(json.dumps(make_record(model, "Once", params, tokens, {})))
    for name in (HUB_ID, checkpoint):  # the same weights
        assert all(same for _, same in replay(record, *load(name)))


def test_a_runs_folder_opens_as_its_best_checkpoint_which_is_offered_before_the_newest(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(model_registry, "RUNS", tmp_path)
    write = partial(shutil.copytree, checkpoint, dirs_exist_ok=True)
    for step, loss in ((100, 2.0), (200, 3.0)):
        save_checkpoint(tmp_path / "run", step, write, validation={"val_loss": loss, "texts": "the same"})
    best, newest = (str(tmp_path / "run" / f"step-000{step}") for step in (100, 200))
    assert model_registry.choices("mine") == ["mine", "assets/demo", best, newest]
    assert model_registry.requested_path(f" {tmp_path / 'run'} ") == best
    assert model_registry.open_requested(str(tmp_path / "run"), "assets/demo")[0].name_or_path == best
    assert (tmp_path / "run" / ".opened").read_text() == "step-000100", "it is not pruned while it is open"
    for path in (HUB_ID, checkpoint, "a/b/c", "\0"):
        assert model_registry.requested_path(path) == path


def test_downloads_of_one_model_are_shared_and_no_download_keeps_others_waiting(local_hub, checkpoint, monkeypatch):
    local_hub.behaviour["org/demo"] = "slow"
    (local_hub.root / "models" / "org" / "demo" / "tokenizer.model").write_bytes(bytes(2**22))
    first, second = (model_registry.opening("org/demo", "assets/demo") for _ in range(2))
    for waiting in (first, second):
        while "Downloading" not in next(waiting):
            pass
    assert model_registry.running_downloads() == ["org/demo"]
    model_registry.open_requested(checkpoint, "assets/demo")
    model_registry.cancel_download("org/demo")  # but the other user waits for it too
    first.close()
    assert "Downloading `org/demo`" in next(second)
    model_registry.cancel_download("org/demo")
    with pytest.raises(ValueError, match="checkpoint 'org/demo' was not downloaded: the download was cancelled"):
        list(second)
    assert not model_registry.running_downloads()
    local_hub.behaviour.clear()
    assert model_registry.open_requested("org/demo", "assets/demo")[0].name_or_path == "org/demo"
