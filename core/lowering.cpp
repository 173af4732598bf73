// The unfused spelling of every fused op: what it means in plain ops, and what runs where a backend has no kernel for it.
#include "core/graph_builder.h"

namespace awq {

bool lower(GraphBuilder& b, Op op, const std::string& name, const std::vector<NodeId>& in, const Attrs& attrs, NodeId& result) {
    auto optional = [&](size_t i) { return i < in.size() ? in[i] : no_node; };
    switch (op) {
        case Op::norm_linear: {
            NodeId normed = b.op(Op::rms_norm, name + ".norm", {in[0], in[1]}, attrs);
            result = b.op(Op::linear, name, {normed, in[2], optional(3)});
            return true;
        }
        case Op::norm_gate_up: {
            NodeId normed = b.op(Op::rms_norm, name + ".norm", {in[0], in[1]}, attrs);
            NodeId both = b.op(Op::linear, name, {normed, in[2]});
            int64_t half = b.node(both).cols / 2;
            NodeId gate = b.view(both, 0, half, name + ".gate"), up = b.view(both, half, half, name + ".up");
            Attrs act;
            act.activation = attrs.activation;
            result = b.op(Op::gated_act, name + ".act", {gate, up}, act);
            return true;
        }
        case Op::norm_moe: {
            NodeId normed = b.op(Op::rms_norm, name + ".norm", {in[0], in[1]}, attrs);
            NodeId router = b.op(Op::linear, name + ".router", {normed, in[2]});
            NodeId y = b.op(Op::moe, name, {normed, router, in[3], in[4]}, attrs);
            result = b.op(Op::add, name + ".add", {y, in[5]});
            return true;
        }
        case Op::linear_add: {
            NodeId y = b.op(Op::linear, name, {in[0], in[1], in[2]});
            result = b.op(Op::add, name + ".add", {y, in[3]});
            return true;
        }
        case Op::rope_append: {
            Attrs q = attrs, k = attrs;
            k.heads = attrs.kv_heads;
            result = b.op(Op::rope, name + ".q_rope", {in[0], in[3]}, q);
            NodeId key = b.op(Op::rope, name + ".k_rope", {in[1], in[3]}, k);
            b.op(Op::kv_append, name + ".kv_append", {key, in[2], in[4], in[5], in[6]}, attrs);
            return true;
        }
        default: return false;
    }
}

}  // namespace awq
