"""The columns of a run directory's files: a row a completion, a row a completion and method, a row a state."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1
_floats, _ints = pa.list_(pa.float32()), pa.list_(pa.int32())

#: One row a completion. Lists named per token are as long as the completion; null means "not measured" or, for
#: credit, "assigned none". `segment_*` lists have one entry a segment.
ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.int32()),  # number of the prompt within the step, over all processes
        ("sample", pa.int32()),  # number of the completion within its group
        ("method", pa.string()),
        ("example_id", pa.string()),
        ("prompt", pa.string()),  # the messages, as JSON
        ("images", pa.list_(pa.string())),  # sha256 of each image, in order
        ("columns", pa.string()),  # further columns of the example, as JSON
        ("answer", pa.string()),  # reference answer
        ("text", pa.string()),
        ("finished", pa.bool_()),  # False: cut at max_completion_length
        ("reward", pa.float32()),  # null: no verdict
        ("reward_parts", pa.string()),  # name -> value, as JSON
        ("truth", pa.string()),  # the task's ground truth about the text, as JSON; null when not known
        ("answer_right", pa.bool_()),
        ("perception_right", pa.bool_()),
        ("reasoning_right", pa.bool_()),
        ("error_start", pa.int32()),  # first error, in tokens, end exclusive; null when there is none
        ("error_end", pa.int32()),
        ("error_kind", pa.string()),
        # per token
        ("token_ids", _ints),
        ("pieces", pa.list_(pa.string())),  # joined they are the text
        ("sampled_logprobs", _floats),
        ("engine_logprobs", _floats),  # of what was really drawn from, where that is not the network's own
        ("old_logprobs", _floats),
        ("entropy", _floats),
        ("values", _floats),
        ("ref_logprobs", _floats),
        ("mc_values", _floats),  # Monte Carlo value before the token, where it was sampled
        ("mc_stderr", _floats),
        ("node_ids", _ints),  # trees and chains: `node` of the row of nodes/ that the token belongs to
        ("advantages", _floats),
        ("weights", _floats),
        ("returns", _floats),
        ("role_ids", pa.list_(pa.int8())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("segment_ids", _ints),
        ("new_logprobs", _floats),  # after the step's updates, where these were scored once more
        (
            "ratio",
            _floats,
        ),  # importance ratio at the method's own level, after the step's updates or as the last saw it
        ("clipped", pa.list_(pa.bool_())),  # that ratio lies beyond the clip range on the side that clips
        ("perception_contrast", _floats),
        ("reasoning_contrast", _floats),
        # per segment
        ("segment_start", _ints),
        ("segment_end", _ints),  # exclusive
        ("segment_advantage", _floats),
        ("segment_value", _floats),
        ("segment_stderr", _floats),
        ("segment_rule", pa.list_(pa.string())),
    ],
    metadata={"segpo_schema_version": str(SCHEMA_VERSION)},
)

#: What one method says about the rollouts of a step, afterwards (see afterwards/credit.py).
CREDIT_SCHEMA = pa.schema(
    [
        ROLLOUT_SCHEMA.field(name)
        for name in (
            "step", "group", "sample", "method", "advantages", "weights", "loss_mask", "segment_ids", "segment_start",
            "segment_end", "segment_advantage", "segment_value", "segment_stderr", "segment_rule",
        )
    ],
    metadata=ROLLOUT_SCHEMA.metadata,
)  # fmt: skip

#: One row a state whose value was sampled: a node of a tree, or of the chains of a group, which share the nodes that
#: their completions begin with. Null: not known.
NODE_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.int32()),
        ("method", pa.string()),
        ("node", pa.int32()),  # number within the group; 0 is the root, the prompt
        ("parent", pa.int32()),  # -1 at the root
        ("sample", pa.int32()),  # the first completion that the node's tokens are part of, there from start to end
        ("start", pa.int32()),
        ("end", pa.int32()),  # exclusive; 0 at the root
        ("value", pa.float32()),  # of the state after the node's tokens; of a finished completion its reward
        ("stderr", pa.float32()),  # of the value; null for a single sample
        ("samples", pa.int32()),  # rewards behind the value: leaves below, or continuations drawn; 1 for one's own
        ("advantage", pa.float32()),  # V(node) - V(parent); null at the root
        ("trained", pa.bool_()),  # some token of it entered the loss
    ],
    metadata=ROLLOUT_SCHEMA.metadata,
)
