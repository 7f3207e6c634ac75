"""tests/faults.py at a twentieth of its size, of what no other test covers; and two kills in places that chance seldom finds."""
import faults
import pytest

SIZES = {"kills_sample": 2, "full_disk_prepare": 1, "full_disk_sample": 1, "arguments": 40, "config_files": 100, "checkpoints": 50, "templates": 40,
         "messages": 50, "generations": 100}
BRIEF = faults.TRAIN + [f"--stages[{i}].max_steps=7" for i in range(3)]


@pytest.fixture
def folder(tmp_path_factory, request):
    return tmp_path_factory.getbasetemp() / "faults" / request.node.name.translate(str.maketrans("[]", "__"))


@pytest.mark.parametrize("name", SIZES)
def test_faults(folder, name):
    try:
        print(faults.CHECKS[name][0](folder, SIZES[name]))
    except faults.Skipped as reason:
        pytest.skip(str(reason))


def test_a_run_killed_before_its_first_checkpoint_or_while_an_earlier_one_moves_leaves_no_trace(folder):
    faults.world(folder, trained=False)
    train, out = faults.Program(folder, "train.py", *BRIEF), folder / "out"
    train.start("best_stage1.pt").join()
    assert len(faults.lines_of(out / "log.jsonl")) > 2 and not (out / "latest.pt").exists()
    train.whole()
    whole = faults.learnt(out)
    assert [line["stage"] for line in whole[1] if line.get("event") == "stage"] == [1, 2, 3]
    train.start("previous1/log.jsonl").join()
    assert (out / "log.jsonl").exists()
    train.whole()
    assert faults.learnt(out) == faults.learnt(out / "previous1") == whole and not (out / "previous2").exists()
