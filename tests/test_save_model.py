import torch

from actors.training.save_model import cast


def test_tied_weights_stay_one_tensor_in_another_dtype() -> None:
    """In bf16 they were saved twice."""
    embedding = torch.randn(4, 3)
    state = {
        "embed.weight": embedding,
        "lm_head.weight": embedding,
        "norm.weight": torch.ones(3),
        "steps": torch.tensor(3),
    }
    found = cast(state, torch.bfloat16)
    assert found["embed.weight"] is found["lm_head.weight"]
    assert found["embed.weight"].dtype == found["norm.weight"].dtype == torch.bfloat16
    assert found["steps"].dtype == torch.int64
    torch.testing.assert_close(found["embed.weight"].float(), embedding, rtol=1e-2, atol=1e-2)
