"""FromTorch: torch.nn.LSTM, GRU and RNN as Cores."""

import torch
from torch import Tensor, nn

from dnirnn.checks import shown
from dnirnn.core import Core, between_resets
from dnirnn.weight_drop import LayeredConfig

REFUSED = {
    "bidirectional": "a truncated network can't read the future",
    "batch_first": "inputs are [T, B, I]; of [B, T, I] give x.transpose(0, 1)",
    "proj_size": "project the output with an nn.Linear",
    "dropout": "its masks would change with the truncation; between layers, dnirnn.Deep(cores,"
    " dropout=...)",
}


# Options of torch.nn's modules that are as they are here: their one value, and what to write for others.
FIXED = {
    "bias": (True, "without them, dnirnn.FromTorch of torch.nn's module"),
    "nonlinearity": ("tanh", 'with relu, dnirnn.FromTorch(torch.nn.RNN(..., nonlinearity="relu"))'),
}


def refuse_options(kind: type, options: dict[str, object]) -> None:
    """Raises TypeError for the options of torch.nn's modules that ``kind`` has none of."""
    for name, value in options.items():
        fixed, how = FIXED.get(name, (False, REFUSED.get(name)))
        if how is None or (name == "nonlinearity" and kind.__name__ != "RNN"):
            raise TypeError(f"{kind.__name__} has no argument {name}; got {name}={value!r}")
        if name in FIXED and value != fixed:
            raise TypeError(f"{kind.__name__} has {name}={fixed!r}: {how}; got {name}={value!r}")
        if name in REFUSED and value:
            raise TypeError(f"{kind.__name__} has no {name}: {how}; got {name}={value!r}")


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
FUNCTIONS = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
SUPPORTED = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


class FromTorch(Core):
    """Makes a Core of an nn.LSTM, nn.GRU or nn.RNN; its parameters are the module's own.

    The state [B, S] concatenates the layers: h_0, c_0, h_1, c_1, ... for an LSTM (S = 2 L H),
    h_0, h_1, ... for a GRU or an RNN (S = L H). Between resets the module runs on whole chunks.

    Raises TypeError for another module, and ValueError, naming the option, for one that is
    bidirectional, batch_first, or has proj_size or dropout.
    """

    reads_t = False

    def __init__(self, module: nn.RNNBase):
        super().__init__()
        if not isinstance(module, nn.RNNBase):
            raise TypeError(
                f"module must be an nn.LSTM, nn.GRU or nn.RNN; got {shown(module)}"
            )
        for name, why in REFUSED.items():
            if getattr(module, name):
                raise ValueError(f"module must not have {name}={getattr(module, name)}: {why}")
        self.module = module
        self.parts = 2 if isinstance(module, nn.LSTM) else 1
        self.input_size, self.output_size = module.input_size, module.hidden_size
        self.state_size = self.parts * module.num_layers * module.hidden_size

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.forward(x_BI[None], state_BS)
        return output[0], state

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if reset is None:
            return self.run(x_TBI, state_BS)
        if torch.compiler.is_compiling():  # where resets are is not known there
            return super().forward(x_TBI, state_BS, t0, reset)
        return between_resets(self.run, x_TBI, state_BS, self.initial_state(x_TBI.shape[1]), reset)

    def reduced(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple:
        """nn.LSTM in the CPU's autocast dtype: torch would take oneDNN's where this CPU has none."""
        dtype = torch.get_autocast_dtype("cpu")
        if getattr(torch.ops.mkldnn, SUPPORTED[dtype])():
            return self.module(x, state)
        with torch.autocast("cpu", enabled=False):
            weights = {name: p.to(dtype) for name, p in self.module.named_parameters()}
            given = x.to(dtype), tuple(part.to(dtype) for part in state)
            return torch.func.functional_call(self.module, weights, given)

    def run(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        module = self.module
        parts = state_BS.to(x_TBI.dtype).view(
            len(state_BS), module.num_layers, self.parts, module.hidden_size
        )
        parts = [part.contiguous() for part in parts.permute(2, 1, 0, 3)]
        given = x_TBI, tuple(parts) if self.parts == 2 else parts[0]
        if x_TBI.is_cpu and torch.is_autocast_enabled("cpu") and self.parts == 2:
            output, ended = self.reduced(*given)
        elif torch.compiler.is_exporting():  # which a module that gathers its weights refuses
            output, ended = functional(module, *given)
        else:
            output, ended = module(*given)
        ended = ended if self.parts == 2 else (ended,)
        state = torch.stack(ended, 1).permute(2, 0, 1, 3)
        return output, state.reshape(len(state_BS), self.state_size).to(state_BS.dtype)


def functional(module: nn.RNNBase, x: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> tuple:
    """module(x, state), of its attributes' weights."""
    names = NAMES if module.bias else NAMES[:2]
    weights = [getattr(module, f"{name}_l{i}") for i in range(module.num_layers) for name in names]
    options = (module.bias, module.num_layers, 0.0, module.training, False, False)
    output, *ended = FUNCTIONS[module.mode](x, state, weights, *options)
    return output, tuple(ended) if len(ended) > 1 else ended[0]


class TorchConfig(LayeredConfig):
    module: type[nn.RNNBase]

    @classmethod
    def kind(cls, *sizes: int) -> Core:
        return FromTorch(cls.module(*sizes))


class TorchLSTMConfig(TorchConfig, name="torch-lstm"):
    """torch.nn's LSTM"""

    module = nn.LSTM


class TorchGRUConfig(TorchConfig, name="torch-gru"):
    """torch.nn's GRU"""

    module = nn.GRU


class TorchRNNConfig(TorchConfig, name="torch-rnn"):
    """torch.nn's RNN"""

    module = nn.RNN
