"""A Llama or Qwen2 of transformers as OpenVINO's own graph, which keeps keys and values from call to call.

The graph has the inputs and the pattern of attention that openvino-genai looks for, so that it serves it with its paged
attention. Exporters of other projects follow transformers' releases late; these two families need few operations.

Shape letters: B rows, L new tokens, S all tokens, E model width, H heads, K key-value heads, D head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel


def openvino_graph(model: PreTrainedModel) -> Any:
    """The model as an ``openvino.Model`` with the same weights: ``input_ids``, ``attention_mask``, ``position_ids`` and
    ``beam_idx`` in, ``logits`` [B, L, V] out.
    """
    import openvino as ov
    from openvino import opset15 as ops

    return _Graph(model, ov, ops).built()


class _Graph:
    def __init__(self, model: PreTrainedModel, ov: Any, ops: Any) -> None:
        self._model: Any = model
        self._ov, self._ops = ov, ops
        self._config: Any = model.config
        self._heads = self._config.num_attention_heads
        self._key_heads = self._config.num_key_value_heads
        self._width = self._config.hidden_size // self._heads
        self._assigned: list[Any] = []

    def built(self) -> Any:
        ops, ov = self._ops, self._ov
        ids_BL, mask_BS, positions_BL = (
            self._input(name, [-1, -1], np.int64) for name in ("input_ids", "attention_mask", "position_ids")
        )
        self._beams_B = self._input("beam_idx", [-1], np.int32)
        table = self._constant(self._model.model.embed_tokens.weight)
        self._rows = ops.gather(ops.shape_of(ids_BL), self._ints(0), self._ints(0))
        states_BLE = ops.gather(table, ids_BL, self._ints(0))
        rotation = self._rotation(positions_BL)
        hidden = self._hidden(mask_BS, ids_BL)
        for index, layer in enumerate(self._model.model.layers):
            states_BLE = self._layer(index, layer, states_BLE, rotation, hidden)
        logits = self._linear(self._norm(states_BLE, self._model.model.norm), self._model.lm_head)
        logits.get_output_tensor(0).set_names({"logits"})
        result = ops.result(logits)
        return ov.Model([result], self._assigned, [ids_BL, mask_BS, positions_BL, self._beams_B])

    def _input(self, name: str, shape: list[int], dtype: Any) -> Any:
        parameter = self._ops.parameter(shape, dtype, name=name)
        parameter.get_output_tensor(0).set_names({name})
        return parameter

    def _constant(self, tensor: Any) -> Any:
        return self._ops.constant(tensor.detach().numpy())

    def _ints(self, *values: int) -> Any:
        return self._ops.constant(np.array(values if len(values) > 1 else values[0], np.int64))

    def _linear(self, inputs: Any, module: Any) -> Any:
        product = self._ops.matmul(inputs, self._constant(module.weight), False, True)
        return product if module.bias is None else self._ops.add(product, self._constant(module.bias))

    def _norm(self, states_BLE: Any, module: Any) -> Any:
        ops = self._ops
        square = ops.power(states_BLE, np.float32(2))
        mean = ops.reduce_mean(square, self._ints(-1), keep_dims=True)
        scale = ops.divide(np.float32(1), ops.sqrt(ops.add(mean, np.float32(module.variance_epsilon))))
        return ops.multiply(ops.multiply(states_BLE, scale), self._constant(module.weight))

    def _rotation(self, positions_BL: Any) -> tuple[Any, Any]:
        """Cosines and sines [B, 1, L, D]."""
        ops = self._ops
        frequencies = self._constant(self._model.model.rotary_emb.inv_freq[None, :, None])
        positions = ops.convert(ops.unsqueeze(positions_BL, self._ints(1)), np.float32)
        angles_BLD = ops.transpose(ops.matmul(frequencies, positions, False, False), self._ints(0, 2, 1))
        both = ops.unsqueeze(ops.concat([angles_BLD, angles_BLD], -1), self._ints(1))
        return ops.cos(both), ops.sin(both)

    def _hidden(self, mask_BS: Any, ids_BL: Any) -> Any:
        """What is added to scores [B, 1, L, S]: a token sees those before it that are no padding."""
        ops = self._ops
        total = ops.gather(ops.shape_of(mask_BS), self._ints(1), self._ints(0))
        new = ops.gather(ops.shape_of(ids_BL), self._ints(1), self._ints(0))
        keys_S = ops.range(self._ints(0), total, self._ints(1), "i64")
        queries_L = ops.range(ops.subtract(total, new), total, self._ints(1), "i64")
        seen_LS = ops.less_equal(keys_S, ops.unsqueeze(queries_L, self._ints(1)))
        seen = ops.logical_and(seen_LS, ops.convert(ops.unsqueeze(mask_BS, self._ints(1, 2)), "boolean"))
        return ops.select(seen, np.float32(0), np.float32(np.finfo(np.float32).min))

    def _heads_first(self, states_BLE: Any, heads: int) -> Any:
        shape = self._ints(0, 0, heads, self._width)
        return self._ops.transpose(self._ops.reshape(states_BLE, shape, True), self._ints(0, 2, 1, 3))

    def _rotated(self, states_BHLD: Any, rotation: tuple[Any, Any]) -> Any:
        ops, half = self._ops, self._width // 2
        first, second = (
            ops.slice(states_BHLD, self._ints_1(a), self._ints_1(b), self._ints_1(1), self._ints_1(3))
            for a, b in ((0, half), (half, self._width))
        )
        turned = ops.concat([ops.multiply(second, np.float32(-1)), first], -1)
        return ops.add(ops.multiply(states_BHLD, rotation[0]), ops.multiply(turned, rotation[1]))

    def _ints_1(self, value: int) -> Any:
        return self._ops.constant(np.array([value], np.int64))

    def _kept(self, name: str, new_BKLD: Any) -> Any:
        """The tokens of the calls before and the new ones."""
        ops, ov = self._ops, self._ov
        start = ops.broadcast(np.float32(0), ops.concat([ops.unsqueeze(self._rows, self._ints(0)), self._tail()], 0))
        info = ov.op.util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, self._key_heads, -1, self._width])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = ov.op.util.Variable(info)
        before = ops.gather(ops.read_value(start, variable), self._beams_B, self._ints(0))
        all_BKSD = ops.concat([before, new_BKLD], 2)
        self._assigned.append(ops.assign(all_BKSD, variable))
        return all_BKSD

    def _tail(self) -> Any:
        return self._ints(self._key_heads, 0, self._width)

    def _repeated(self, states_BKSD: Any) -> Any:
        """Key-value heads for every query head."""
        shared = self._heads // self._key_heads
        if shared == 1:
            return states_BKSD
        ops = self._ops
        apart = ops.unsqueeze(states_BKSD, self._ints(2))
        repeated = ops.broadcast(apart, self._ints(1, 1, shared, 1, 1), broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, self._ints(0, self._heads, -1, self._width), True)

    def _layer(self, index: int, layer: Any, states_BLE: Any, rotation: tuple[Any, Any], hidden: Any) -> Any:
        ops, attention, mlp = self._ops, layer.self_attn, layer.mlp
        inputs = self._norm(states_BLE, layer.input_layernorm)
        query = self._rotated(self._heads_first(self._linear(inputs, attention.q_proj), self._heads), rotation)
        key = self._rotated(self._heads_first(self._linear(inputs, attention.k_proj), self._key_heads), rotation)
        value = self._heads_first(self._linear(inputs, attention.v_proj), self._key_heads)
        keys, values = (
            self._repeated(self._kept(f"past_key_values.{index}.{kind}present.{index}.{kind}", states))
            for kind, states in (("key", key), ("value", value))
        )
        scale = np.float32(attention.scaling)
        mixed = ops.scaled_dot_product_attention(query, keys, values, hidden, ops.constant(scale), False)
        mixed = ops.reshape(
            ops.transpose(mixed, self._ints(0, 2, 1, 3)), self._ints(0, 0, self._heads * self._width), True
        )
        states_BLE = ops.add(states_BLE, self._linear(mixed, attention.o_proj))
        inputs = self._norm(states_BLE, layer.post_attention_layernorm)
        wide = ops.multiply(ops.swish(self._linear(inputs, mlp.gate_proj)), self._linear(inputs, mlp.up_proj))
        return ops.add(states_BLE, self._linear(wide, mlp.down_proj))
