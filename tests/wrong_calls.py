"""Wrong calls of all that is public: what each argument must not be."""

import inspect
import math

import torch
from torch import nn
from wrong_values import (
    AMOUNT,
    CORE,
    COUNT,
    ESTIMATOR,
    FLAG,
    MODULE,
    NAN,
    NUMBER,
    OF_SIZES,
    PROBABILITY,
    SIZE,
    STATE,
    TENSOR,
    WIDTHS,
    WORD,
    X,
    called,
    core,
    core_4,
    decoupled,
    loss_and_cuts,
    trainer,
    two_networks,
)

import dnirnn
from dnirnn.data import TextStream, Vocabulary
from dnirnn.distributed import average_gradients, broadcast, rows_of
from dnirnn.masks import Masks

# name: (what to call, its good arguments, wrong ones). A list is for the keyword of that name; a pair
# (good arguments, list) where those must be others for the list to be wrong.
CELL = dict(input_size=SIZE, hidden_size=SIZE)
KNOBS = dict(scale=AMOUNT, discount=AMOUNT)
CALLS = {
    "ByPart": (
        dnirnn.ByPart,
        dict(estimators=[dnirnn.ZeroGradient()], sizes=[8]),
        dict(estimators=[[], [None], [3], None, "x", core()], sizes=[*WIDTHS, (1, 2)]),
    ),
    "LSTM": (dnirnn.LSTM, dict(input_size=3, hidden_size=4), CELL | dict(num_layers=SIZE)),
    "GRU": (dnirnn.GRU, dict(input_size=3, hidden_size=4), CELL | dict(num_layers=SIZE)),
    "RNN": (dnirnn.RNN, dict(input_size=3, hidden_size=4), CELL | dict(num_layers=SIZE)),
    "NormLSTM": (
        dnirnn.NormLSTM,
        dict(input_size=3, hidden_size=4),
        CELL
        | dict(layer_norm=FLAG)
        | dict.fromkeys(("zoneout_h", "zoneout_c", "recurrent_dropout"), PROBABILITY),
    ),
    "WeightDrop": (
        dnirnn.WeightDrop,
        dict(core=core(), drop=0.5),
        dict(core=CORE, drop=PROBABILITY, names=[(), 3, "weight_hh_l0", ["nope"], [3], True]),
    ),
    "Clockwork": (
        dnirnn.Clockwork,
        dict(input_size=3, hidden_size=4, periods=(1, 2)),
        CELL | dict(periods=[*OF_SIZES, (2, 1), (1, 1)], cell=WORD),
    ),
    "Dilated": (
        dnirnn.Dilated,
        dict(input_size=3, hidden_size=4, dilations=(1, 2)),
        CELL | dict(dilations=OF_SIZES, cell=WORD),
    ),
    "Deep": (
        dnirnn.Deep,
        dict(cores=[dnirnn.LSTM(3, 3), dnirnn.LSTM(3, 3)]),
        dict(
            cores=[None, 3, [], "ab", core(), [None], [nn.Linear(3, 3)], [core(), core()]],
            residual=FLAG, skip=FLAG, dropout=PROBABILITY, same_mask=FLAG,
        ),
    ),
    "Every": (
        dnirnn.Every, dict(core=core(), period=2), dict(core=CORE, period=SIZE, gather=WORD)
    ),
    "FastSlow": (
        dnirnn.FastSlow,
        dict(input_size=3, fast_size=4, slow_size=2),
        dict(input_size=SIZE, fast_size=SIZE, slow_size=SIZE, fast_cells=[1, *SIZE], layer_norm=FLAG)
        | dict.fromkeys(("zoneout_h", "zoneout_c", "dropout"), PROBABILITY),
    ),
    "HMLSTM": (
        dnirnn.HMLSTM,
        dict(input_size=3, hidden_size=4),
        CELL
        | dict(num_layers=[1, *SIZE], slope=[0, *AMOUNT], layer_norm=FLAG)
        | dict(output_size=[size for size in SIZE if size is not None]),
    ),
    "PhasedLSTM": (
        dnirnn.PhasedLSTM,
        dict(input_size=3, hidden_size=4),
        CELL
        | dict(open_ratio=[0, 1.5, *AMOUNT], leak=AMOUNT)
        | dict(periods=[None, 3, (1,), (2, 1), (0, 1), (1, NAN), (1, math.inf), "ab", (1, "2")]),
    ),
    "Skip": (dnirnn.Skip, dict(core=core()), dict(core=CORE, bias=NUMBER, cost=AMOUNT)),
    "Hierarchy": (
        dnirnn.Hierarchy,
        dict(fast=dnirnn.LSTM(5, 4), slow=dnirnn.LSTM(4, 2), period=2),
        dict(fast=CORE, slow=CORE, period=SIZE, back=SIZE, delay=COUNT),
    ),
    "Hierarchy.truncate": (
        dnirnn.Hierarchy(dnirnn.LSTM(5, 4), dnirnn.LSTM(4, 2), 2).truncate,
        dict(training="dni", ticks=2),
        dict(training=WORD, ticks=SIZE, estimator=[3, "dni", nn.Linear(3, 4), dnirnn.ZeroGradient]),
    ),
    "FromTorch": (
        dnirnn.FromTorch,
        dict(module=nn.GRU(3, 4)),
        dict(module=[*MODULE, core(), nn.GRU(3, 4, batch_first=True), nn.LSTM(3, 4, proj_size=2)]),
    ),
    "Truncated": (
        dnirnn.Truncated,
        dict(core=core(), truncation=2, estimator=dnirnn.ZeroGradient()),
        dict(core=CORE, truncation=SIZE, estimator=ESTIMATOR)
        | dict(open_cuts=[value for value in PROBABILITY if value is not None], overlap=COUNT),
    ),
    "Embedding": (
        dnirnn.Embedding,
        dict(num_embeddings=3, embedding_dim=2),
        dict(num_embeddings=SIZE, embedding_dim=SIZE),
    ),
    "Masks": (Masks, dict(size=3, drop=0.5), dict(size=SIZE, drop=PROBABILITY, over_time=FLAG)),
    "SyntheticGradient": (
        dnirnn.SyntheticGradient,
        dict(state_size=8),
        KNOBS
        | dict(state_size=SIZE, hidden=WIDTHS, context_size=COUNT, normalise=FLAG, dense=FLAG)
        | dict(batch_norm=FLAG, trace_decay=[1.1, *AMOUNT], auxiliary=AMOUNT, terminal_target=FLAG),
    ),
    "ConvSyntheticGradient": (
        dnirnn.ConvSyntheticGradient,
        dict(channels=3),
        KNOBS
        | dict(channels=SIZE, hidden=WIDTHS, kernel_size=[2, *SIZE], context_size=COUNT, normalise=FLAG, batch_norm=FLAG),
    ),
    "LeastSquares": (
        dnirnn.LeastSquares,
        dict(state_size=8),
        KNOBS
        | dict(state_size=SIZE, forgetting=PROBABILITY, ridge=[0, *AMOUNT], solve_every=SIZE)
        | dict(context_size=COUNT, dense=FLAG, trace_decay=[1.1, *AMOUNT], terminal_target=FLAG),
    ),
    "BPLambda": (
        dnirnn.BPLambda,
        dict(state_size=8, batch_size=2),
        KNOBS
        | dict(state_size=SIZE, batch_size=SIZE, trace_decay=[1.1, *AMOUNT], terminal_target=FLAG)
        | dict(memory_limit=SIZE),
    ),
    "Reader": (
        dnirnn.Reader,
        dict(state_size=8, reads=2, step_size=3),
        KNOBS
        | dict(state_size=SIZE, reads=SIZE, step_size=SIZE, units=SIZE, hidden=WIDTHS, dense=FLAG)
        | dict(terminal_target=FLAG, clip=[0, *(a for a in AMOUNT if a is not None)]),
    ),
    "AutoScale": (
        dnirnn.AutoScale,
        dict(estimator=dnirnn.SyntheticGradient(8)),
        dict(
            estimator=[*ESTIMATOR, dnirnn.ZeroGradient(), dnirnn.SyntheticGradient(8, auxiliary=0.1)],
            decay=PROBABILITY, look_every=SIZE, patience=SIZE,
        ),
    ),
    "Control": (
        dnirnn.Control,
        dict(estimator=dnirnn.SyntheticGradient(8)),
        dict(
            estimator=[*ESTIMATOR, dnirnn.ZeroGradient(), dnirnn.SyntheticGradient(8, auxiliary=0.1)],
            kind=WORD,
        ),
    ),
    "TrueGradient": (
        dnirnn.TrueGradient,
        {},
        KNOBS | dict(lookahead=[size for size in SIZE if size is not None]),
    ),
    "Decoupled": (
        dnirnn.Decoupled,
        decoupled,
        dict(
            modules=[None, 3, [], nn.Linear(3, 4), [nn.Linear(3, 4), None], ["a", "b"]],
            estimators=[None, 3, [], [None], [nn.Linear(4, 4)]],
            loss=[None, 3, "mse"],
            optimizers=[None, 3, [], ["adam", "adam"], nn.Linear(3, 4)],
            estimator_optimizers=[3, [], ["adam"], [3.0]],
            update=WORD,
            probability=[0, 1.1, *AMOUNT],
        ),
    ),
    "HierarchyParallel": (
        dnirnn.HierarchyParallel,
        two_networks,
        dict(
            core=[None, 3, "core", dnirnn.LSTM(3, 4), dnirnn.Hierarchy(dnirnn.LSTM(5, 4), dnirnn.LSTM(4, 2), 2, 3)],
            encoder=[None, 3, "x", dnirnn.LSTM],
            losses=[None, 3, [], ["mse", "mse"]],
            in_time=[None, 3, [], [None, None], [nn.Linear(4, 4)]],
            cuts=[None, 3, [], [None, None], [nn.Linear(4, 4)]],
            optimizers=[None, 3, [], ["adam", "adam"], [(3.0,), (3.0,)]],
            staleness=COUNT,
            delay=[3600, *AMOUNT],
        ),
    ),
    "DecoupledParallel": (
        dnirnn.DecoupledParallel,
        decoupled,
        dict(
            modules=[None, 3, [], nn.Linear(3, 4), ["a", "b"]],
            estimators=[None, 3, [None], [nn.Linear(4, 4)]],
            loss=[None, 3, "mse"],
            optimizers=[None, 3, ["adam", "adam"]],
            estimator_optimizers=[3, ["adam"]],
            staleness=COUNT,
            delay=[3600, *AMOUNT],
        ),
    ),
    "Truncated.forward": (
        lambda **arguments: called()[0](**arguments),
        dict(x_TBI=X, state_BS=STATE),
        dict(
            x_TBI=[*TENSOR, X[0], X[..., :2], X.long(), X.double(), X.to("meta"), X[:0]],
            state_BS=[*TENSOR, STATE[0], STATE[:1], STATE[:, :7], STATE.double(), STATE.long()],
            t0=[1.5, "0", True, [0], torch.zeros(2), torch.zeros(3, dtype=torch.int64)],
            final=[None, 1, "yes", torch.ones(2), torch.ones(3).bool()],
            reset=[True, 1, "yes", torch.zeros(4, 2), torch.zeros(2, 4).bool(), X.bool()],
            context=[3, "x", [[1.0]], torch.zeros(2, 2)],
        ),
    ),
    "Truncated.forward, told": (
        lambda **arguments: called(dnirnn.SyntheticGradient(8, context_size=2))[0](**arguments),
        dict(x_TBI=X, state_BS=STATE, context=torch.zeros(2, 2)),
        dict(context=[*TENSOR, torch.zeros(2, 3), torch.zeros(2), torch.zeros(4, 2, 2)]),
    ),
    "Core": (
        lambda **arguments: dnirnn.Deep([dnirnn.GRU(3, 4), dnirnn.Every(core_4(), 2)])(**arguments),
        dict(x_TBI=X, state_BS=torch.zeros(2, 16), t0=0),
        dict(
            x_TBI=[*TENSOR, X[0], X[..., :2], X.long(), X.double(), X[:0]],
            state_BS=[*TENSOR, STATE, STATE[:1], torch.zeros(2, 16).double()],
            t0=[1.5, "0", True, [0], torch.zeros(2), torch.zeros(3, dtype=torch.int64)],
            reset=[True, 1, "yes", torch.zeros(4, 2), torch.zeros(2, 4).bool()],
        ),
    ),
    "pack_state": (
        lambda **arguments: core().pack_state(**arguments),
        dict(h=torch.zeros(1, 2, 4), c=torch.zeros(1, 2, 4)),
        dict(h=[*TENSOR, STATE], c=[*TENSOR, STATE]),
    ),
    "unpack_state": (
        lambda **arguments: core().unpack_state(**arguments),
        dict(state=STATE),
        dict(state=[*TENSOR, X, STATE[:, :7]]),
    ),
    "initial_state": (
        lambda **arguments: core().initial_state(**arguments), dict(batch_size=2), dict(batch_size=SIZE)
    ),
    "backward": (
        dnirnn.backward,
        loss_and_cuts,
        dict(
            loss=[*TENSOR, X, torch.ones(3, requires_grad=True), torch.tensor(1.0)],
            interfaces=[None, 3, "x", X, [None], [X]],
            unit=[0, *(value for value in AMOUNT if value is not None)],
            reduction=["none", 3, True, ["mean"]],
            micro_batches=SIZE,
            scaler=[3.0, "yes", True, [1]],
        ),
    ),
    "cut": (
        dnirnn.cut,
        dict(h=torch.ones(2, 8, requires_grad=True), estimator=dnirnn.SyntheticGradient(8)),
        dict(
            h=[*TENSOR, torch.ones(8), torch.ones(2, 7), torch.ones(2, 8).long()],
            estimator=[*ESTIMATOR, dnirnn.SyntheticGradient(7), dnirnn.BPLambda(8, 2)],
            context=[3, "x", torch.zeros(2, 2)],
            through=FLAG,
        ),
    ),
    "send": (
        dnirnn.send,
        lambda: dict(interface=dnirnn.cut(torch.ones(2, 8), dnirnn.SyntheticGradient(8))[1]),
        dict(interface=[None, 3, X, []], below=[None, 3, X, [None]], unit=[0, *AMOUNT]),
    ),
    "receive": (
        dnirnn.receive,
        lambda: dict(interface=dnirnn.cut(torch.ones(2, 8), dnirnn.SyntheticGradient(8))[1]),
        dict(interface=[None, 3, X, []], unit=[0, *AMOUNT]),
    ),
    "draw_masks": (dnirnn.draw_masks, dict(module=core()), dict(module=[None, 3, "lstm", X, []])),
    "true_gradients": (
        dnirnn.true_gradients,
        lambda: dict(zip(("loss", "interface"), (loss_and_cuts()["loss"], called()[1][2][0]))),
        dict(
            loss=[*TENSOR, X],
            interface=[None, 3, X, []],
            lookahead=[size for size in SIZE if size is not None],
            discount=AMOUNT,
            unit=[0, *AMOUNT],
        ),
    ),
    "Trainer": (
        dnirnn.Trainer,
        trainer,
        dict(
            model=[*MODULE, core(), nn.Linear(3, 4)],
            stream=[None, 3, "text", X],
            config=[None, 3, "x", {}],
            folder=[None, 3, True],
        ),
    ),
    "TrainerConfig": (
        dnirnn.TrainerConfig,
        dict(updates=1),
        dict.fromkeys(("chunks", "log_every"), SIZE)
        | dict.fromkeys(
            ("updates", "micro_batch", "evaluate_every", "fidelity_every", "checkpoint_every",
             "patience"), [size for size in SIZE if size is not None],
        )
        | dict.fromkeys(
            ("minutes", "symbols", "checkpoint_seconds"),
            [0, *(value for value in AMOUNT if value not in (None, math.inf))],
        )
        | dict.fromkeys(
            ("clip", "estimator_clip", "min_norm", "estimator_min_norm"),
            [value for value in AMOUNT if value not in (None, math.inf)],
        )
        | dict.fromkeys(("lr", "estimator_lr"), [0, *AMOUNT])
        | dict.fromkeys(("warm_up", "ramp", "lr_warm_up"), COUNT)
        | dict.fromkeys(("optimizer_options", "estimator_optimizer_options", "schedule_options"), [None, 3, "lr", [1]])
        | dict.fromkeys(("optimizer", "estimator_optimizer"), WORD)
        | dict.fromkeys(("schedule", "decay"), [word for word in WORD if word is not None])
        | dict(seed=COUNT, tensorboard=FLAG, average=[0, 1.0, *AMOUNT[:-4], True, [1.0], 1j]),
    ),
    "load": (dnirnn.load, dict(run="nowhere"), dict(run=[None, 3, True])),
    "read_log": (dnirnn.read_log, dict(path="nowhere"), dict(path=[None, 3, True])),
    "TextStream": (
        TextStream,
        dict(symbols=torch.zeros(9, dtype=torch.int64), batch_size=2, first_input=0),
        dict(symbols=[*TENSOR, X, torch.zeros(1).long()], batch_size=[99, *SIZE], first_input=COUNT),
    ),
    "Vocabulary": (
        Vocabulary,
        dict(characters="ab"),
        dict(characters=["", "aa", None, 3, ["a"], b"ab"], unknown=FLAG),
    ),
    "average_gradients": (
        lambda modules: average_gradients(modules), dict(modules=core()), dict(modules=[None, 3, X, []])
    ),
    "broadcast": (
        lambda modules: broadcast(modules), dict(modules=core()), dict(modules=[None, 3, X, []])
    ),
    "Distillation": (
        dnirnn.Distillation,
        lambda: dict(teachers=[trainer()["model"]]),
        dict(teachers=[None, 3, [], [3]], weight=[*AMOUNT, 2], temperature=[0, *AMOUNT],
             fixed=FLAG),
    ),
    "DistilledStream": (
        dnirnn.DistilledStream,
        lambda: dict(
            stream=trainer()["stream"], distillation=dnirnn.Distillation([trainer()["model"]])
        ),
        dict(stream=[None, 3], distillation=[None, 3], memory=COUNT),
    ),
    "DynamicEvaluation": (
        dnirnn.DynamicEvaluation,
        lambda: (lambda model: dict(
            model=model, squares=[torch.zeros_like(p) for p in model.core_parameters()], rate=0.1
        ))(trainer()["model"]),
        dict(model=[None, 3], squares=[None, 3, [], [3]], rate=AMOUNT, decay=AMOUNT, steps=SIZE,
             epsilon=AMOUNT),
    ),
    "rows_of": (rows_of, dict(batch=X), dict(batch=[None, 3, [1]])),
}  # fmt: skip

# A core's or an estimator's arguments of these names are the same everywhere: one that has no line above
# is called by its sizes, and what is its own is refused in its own test.
USUAL = CELL | KNOBS | dict(state_size=SIZE, context_size=COUNT, dense=FLAG, terminal_target=FLAG)
USUAL |= dict(trace_decay=[1.1, *AMOUNT], num_layers=SIZE)
GOOD = dict(input_size=3, hidden_size=12, state_size=8)
OWN = {}  # the arguments that are left
for name in sorted({*dnirnn.stacks.__all__, *dnirnn.estimators.__all__} - CALLS.keys()):
    arguments = inspect.signature(getattr(dnirnn, name)).parameters
    if GOOD.keys() & arguments:
        good = {argument: GOOD[argument] for argument in GOOD.keys() & arguments}
        known = {argument: USUAL[argument] for argument in USUAL.keys() & arguments}
        CALLS[name] = (getattr(dnirnn, name), good, known)
        OWN[name] = set(arguments) - set(USUAL)
