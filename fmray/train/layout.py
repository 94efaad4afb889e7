"""What a state holds, told apart from how it is sharded, so that any layout of workers reads what any other wrote.

Every worker writes the tensors that its optimizer steps on as they lie in memory, with an index of which stretch of which parameter
lies where; who loads takes the stretches that are its own. DeepSpeed's own checkpoints load only where they were written; its
universal ones must be converted first, know no stage 0, and at stage 3 give every parameter group the weight decay of the first.

A trained parameter has its float32 weights and what AdamW keeps of it. Weights that are not trained are those that the model is
built with; the random numbers of a step come from the seed, its number and where rows stand in its batch.
"""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fmray.core.errors import ArtifactError, RunError
from fmray.model.tensor_file import Entry, held_entry, write_tensors

if TYPE_CHECKING:
    import torch

FORMAT = 1
WEIGHT, BUFFER = "weight", "buffer"


class Piece(NamedTuple):
    """A stretch of a parameter: `n` of its `total` elements from `start` on, at `at` of the flattened tensor number `tensor`."""

    name: str
    total: int
    start: int
    n: int
    tensor: int
    at: int


@dataclass(frozen=True)
class Held:
    """What one worker of `world_size` holds of the trained parameters and of their optimizer's state, as live tensors.

    Attributes:
        tensors: what the optimizer steps on: float32 weights, contiguous and of any shape.
        states: the optimizer's state of each one: tensors of as many elements, and single numbers such as `step`.
        pieces: which stretches of which parameters lie in them; elements of no piece are padding.
        buffers: those that a checkpoint of the model has; every worker has them all.
        replicated: whether every worker holds everything; each then writes its share.
    """

    tensors: list["torch.Tensor"]
    states: list[dict[str, Any]]
    pieces: list[Piece]
    buffers: dict[str, "torch.Tensor"]
    rank: int
    world_size: int
    replicated: bool


def held_whole(module: "torch.nn.Module", optimizer: Any, *, rank: int = 0, world_size: int = 1) -> Held:
    """What a worker holds of which nothing is sharded: `optimizer` steps on the parameters themselves."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    pieces = [Piece(name, parameter.numel(), 0, parameter.numel(), i, 0) for i, (name, parameter) in enumerate(named)]
    tensors: list[torch.Tensor] = [parameter for _, parameter in named]
    return Held(tensors, [optimizer.state[parameter] for parameter in tensors], pieces, kept_buffers(module), rank, world_size, replicated=True)


def kept_buffers(module: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """The buffers that a checkpoint of the module has."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def rank_file(rank: int) -> str:
    """The name of the file that worker `rank` writes of a state."""
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Part:
    """This worker's part of a state: flat tensors that are still those that train, and what is told beside them."""

    rank: int
    tensors: dict[str, "torch.Tensor"]
    metadata: dict[str, str]


def part_of(held: Held, counts: Mapping[str, int]) -> Part:
    """What this worker writes of a state. `counts` are the engine's own: `step`, and of these `skipped` that were not applied, if it has such.

    Raises:
        RunError: the optimizer keeps something that does not belong to single weights.
    """
    pieces = [piece for piece in held.pieces if not held.replicated or piece.tensor % held.world_size == held.rank]
    tensors, numbers = {}, dict[str, float]()
    for i in sorted({piece.tensor for piece in pieces}):
        tensors[f"{i}.{WEIGHT}"] = held.tensors[i]
        if counts["step"] > counts.get("skipped", 0) and not held.states[i]:
            raise RunError(f"the optimizer's state of {_names(pieces, i)} is not where fmray could save it", todo="leave deepspeed's overrides out")
        for key, value in held.states[i].items():
            if _is_number(key, value, held.tensors[i]):
                # A float is a tensor of one in torch's optimizers, and an int a number in DeepSpeed's.
                numbers[key] = value if isinstance(value, int) else float(value)
            elif value.numel() == held.tensors[i].numel():
                tensors[f"{i}.{key}"] = value
            else:
                raise RunError(f"the optimizer's `{key}` does not belong to single weights and cannot be saved", todo="choose another one than deepspeed.optimizer")
    if held.rank == 0:
        tensors |= {f"{BUFFER}.{name}": value for name, value in held.buffers.items()}
    head = {"format": FORMAT, "counts": dict(counts), "world_size": held.world_size, "numbers": numbers, "pieces": pieces}
    return Part(held.rank, {name: value.detach().reshape(-1) for name, value in tensors.items()}, {"fmray": json.dumps(head)})


def write_part(folder: Path, part: Part) -> str:
    """Writes a worker's file of a state, flushed to the device; its sha256.

    Raises:
        OSError: the storage refuses the file.
    """
    return write_tensors(folder / rank_file(part.rank), [held_entry(name, tensor) for name, tensor in part.tensors.items()], part.metadata)


def _is_number(key: str, value: Any, tensor: "torch.Tensor") -> bool:
    return isinstance(value, (int, float)) or key == "step" or (value.ndim == 0 and tensor.ndim > 0)


def _names(pieces: Iterable[Piece], tensor: int) -> str:
    return ", ".join([piece.name for piece in pieces if piece.tensor == tensor][:3])


def read_held(folder: Path, held: Held) -> dict[str, int]:
    """Fills what this worker holds from the files of all workers that wrote the state; returns the counts therein.

    Raises:
        ArtifactError: the state is of another model, or not whole.
    """
    import torch

    with Saved(folder) as saved, torch.no_grad():
        for i, (tensor, state) in enumerate(zip(held.tensors, held.states, strict=True)):
            state.clear()
            for key, dtype in saved.state_dtypes.items():
                state[key] = torch.zeros_like(tensor, dtype=dtype)
            for key, number in saved.numbers.items():
                state[key] = number if isinstance(number, int) else torch.tensor(number, device=tensor.device)
            mine = [piece for piece in held.pieces if piece.tensor == i]
            for key in (WEIGHT, *saved.state_dtypes):
                target = (tensor.detach() if key == WEIGHT else state[key]).view(-1)
                for piece in mine:
                    saved.fill(target[piece.at : piece.at + piece.n], key, piece)
        for name, buffer in held.buffers.items():
            buffer.copy_(saved.buffer(name).view(buffer.shape))
    return saved.counts


class Saved:
    """The files of a state, and where each parameter lies in them."""

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Raises:
            ArtifactError: one of them is missing or no part of a state.
        """
        self._folder, self._stack = folder, ExitStack()
        self._files, heads = list[Any](), list[dict[str, Any]]()
        self._open(0, heads)
        for rank in range(1, heads[0]["world_size"]):
            self._open(rank, heads)
        self.counts: dict[str, int] = heads[0]["counts"]
        self._of = defaultdict[str, list[tuple[Piece, Any]]](list)
        self.numbers: dict[str, float] = {}
        for head, file in zip(heads, self._files, strict=True):
            self.numbers |= head["numbers"]
            for piece in map(Piece._make, head["pieces"]):
                self._of[piece.name].append((piece, file))
        for places in self._of.values():
            places.sort(key=lambda place: place[0].start)
        # Every tensor has the same state, so one that is there tells of all.
        names = {name: file for file in self._files for name in file.keys() if not name.startswith(BUFFER)}  # noqa: SIM118  it is no mapping
        self.state_dtypes: dict[str, torch.dtype] = {
            key: file.get_slice(name)[:1].dtype for name, file in names.items() if (key := name.partition(".")[2]) != WEIGHT
        }

    def __enter__(self) -> "Saved":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, rank: int, heads: list[dict[str, Any]]) -> None:
        from safetensors import SafetensorError, safe_open

        path = self._folder / rank_file(rank)
        try:
            self._files.append(self._stack.enter_context(safe_open(path, framework="pt")))
            heads.append(json.loads(self._files[-1].metadata()["fmray"]))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"is no worker's part of a state ({type(error).__name__})", where=str(path), todo="move the state's folder away") from None
        if heads[-1]["format"] != FORMAT:
            raise ArtifactError(f"has the form {heads[-1]['format']}, and this fmray reads {FORMAT}", where=str(path), todo="resume with the fmray that wrote it")

    def fill(self, target: "torch.Tensor", key: str, piece: Piece) -> None:
        """Copies the stretch `piece` of a parameter's weights or state into `target`."""
        at, end = piece.start, piece.start + piece.n
        for there, file in self._of.get(piece.name, ()):
            if there.total != piece.total:
                raise ArtifactError(f"{piece.name} has {there.total} elements there and {piece.total} in this model", where=str(self._folder))
            if there.start <= at < there.start + there.n:
                stop = min(end, there.start + there.n)
                begin = there.at + at - there.start
                target[at - piece.start : stop - piece.start].copy_(file.get_slice(f"{there.tensor}.{key}")[begin : begin + stop - at])
                at = stop
        if at < end:
            raise ArtifactError(f"holds no {key} of {piece.name} from element {at} on", where=str(self._folder), todo="it is not of this model")

    def buffer(self, name: str) -> "torch.Tensor":
        """A buffer of the model, flattened."""
        from safetensors import SafetensorError

        try:
            found: torch.Tensor = self._files[0].get_tensor(f"{BUFFER}.{name}")
        except SafetensorError:
            raise ArtifactError(f"holds no buffer {name}", where=str(self._folder), todo="it is not of this model") from None
        return found

    def entries(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
        """The trained weights of the model, of these whole shapes: in float32, each read when its turn comes to be written."""
        import torch

        def read(name: str) -> torch.Tensor:
            n = math.prod(shapes[name])
            weights = torch.empty(n, dtype=torch.float32)
            self.fill(weights, WEIGHT, Piece(name, n, 0, n, 0, 0))
            return weights

        return [Entry(name, torch.float32, shape, functools.partial(read, name)) for name, shape in shapes.items()]
