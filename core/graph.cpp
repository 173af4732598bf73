#include "core/graph.h"
#include <atomic>
#include "backends/backend.h"
#include "core/graph_builder.h"

namespace awq {

const char* op_name(Op op) {
    static const char* names[] = {
#define OP(name) #name,
#include "core/ops.def"
#undef OP
    };
    return names[static_cast<int>(op)];
}

uint64_t GraphSerial::next() {
    static std::atomic<uint64_t> last = 0;
    return ++last;
}

// ---- shape rules

Status infer_shape(const Graph& graph, DType activation_type, Node& node) {
    auto clash = [&](const std::string& what) { return Status(Code::internal, node.name + " (" + op_name(node.op) + "): " + what); };
    auto in = [&](size_t i) -> const Node* {
        return i < node.in.size() && node.in[i] != no_node ? &graph.nodes[node.in[i]] : nullptr;
    };
    auto weight = [&](size_t i) -> const WeightSpec* { return in(i) && in(i)->weight ? &in(i)->weight->spec : nullptr; };
    auto like = [&](const Node& other, int64_t cols) {
        node.rows = other.rows;
        node.fixed_rows = other.fixed_rows;
        node.cols = cols;
        node.dtype = activation_type;
    };
    auto cols_must_be = [&](size_t i, int64_t want) {
        if (in(i)->cols == want) return Status();
        return clash("input " + std::to_string(i) + " has " + std::to_string(in(i)->cols) + " columns; " + std::to_string(want) + " expected");
    };
    if (node.op != Op::input && node.op != Op::weight && !in(0)) return clash("lacks its first input");
    switch (node.op) {
        case Op::input:
        case Op::weight: break;
        case Op::view:
            if (node.attrs.offset < 0 || node.cols <= 0 || node.attrs.offset + node.cols > in(0)->cols) return clash("columns out of range");
            node.rows = in(0)->rows;
            node.fixed_rows = in(0)->fixed_rows;
            node.dtype = in(0)->dtype;
            break;
        case Op::embed:
            if (!weight(1)) return clash("lacks its table");
            like(*in(0), weight(1)->in);
            break;
        case Op::add:
            AWQ_TRY(cols_must_be(1, in(0)->cols));
            like(*in(0), in(0)->cols);
            break;
        case Op::scale:
        case Op::softcap:
        case Op::act:
            like(*in(0), in(0)->cols);
            node.dtype = in(0)->dtype;
            break;
        case Op::rms_norm:
        case Op::layer_norm: {
            int64_t width = node.attrs.width;
            if (width <= 0 || in(0)->cols % width != 0) return clash("columns are no multiple of the norm's width");
            for (size_t i = 1; i < node.in.size(); i++)
                if (const WeightSpec* w = weight(i); w && w->in != width && w->in != in(0)->cols) return clash("weight of a wrong size");
            like(*in(0), in(0)->cols);
            break;
        }
        case Op::linear:
            if (!weight(1)) return clash("lacks its weight");
            AWQ_TRY(cols_must_be(0, weight(1)->in));
            if (const WeightSpec* bias = weight(2); bias && bias->in != weight(1)->out) return clash("bias of a wrong size");
            like(*in(0), weight(1)->out);
            if (node.rows == Rows::outputs) node.dtype = DType::f32;    // logits
            break;
        case Op::gather_cols:
            if (!weight(1)) return clash("lacks its order");
            AWQ_TRY(cols_must_be(0, weight(1)->in));
            like(*in(0), in(0)->cols);
            break;
        case Op::gated_act:
            AWQ_TRY(cols_must_be(1, in(0)->cols));
            like(*in(0), in(0)->cols);
            break;
        case Op::rope_table:
            if (!node.attrs.rope || node.attrs.rope->rot_dim <= 0) return clash("lacks its parameters");
            like(*in(0), node.attrs.rope->rot_dim);
            node.dtype = DType::f32;
            break;
        case Op::rope:
            if (in(0)->cols != static_cast<int64_t>(node.attrs.heads) * node.attrs.head_dim) return clash("columns are not heads x head_dim");
            like(*in(0), in(0)->cols);
            break;
        case Op::kv_append:
            AWQ_TRY(cols_must_be(1, in(0)->cols));
            like(*in(0), 0);
            break;
        case Op::attention:
        case Op::attention_full:
            if (in(0)->cols != static_cast<int64_t>(node.attrs.heads) * node.attrs.head_dim) return clash("columns are not heads x head_dim");
            if (node.attrs.kv_heads <= 0 || node.attrs.heads % node.attrs.kv_heads != 0) return clash("heads are no multiple of kv heads");
            like(*in(0), in(0)->cols);
            break;
        case Op::select_rows:
            like(*in(0), in(0)->cols);
            node.rows = Rows::outputs;
            break;
        case Op::moe:
            if (!weight(2) || !weight(3)) return clash("lacks its experts");
            AWQ_TRY(cols_must_be(1, weight(2)->experts));
            AWQ_TRY(cols_must_be(0, weight(2)->in));
            if (weight(3)->in * 2 != weight(2)->out) return clash("down projections of a wrong size");
            like(*in(0), weight(3)->out);
            break;
        case Op::patches: {
            int64_t n = node.attrs.image / node.attrs.patch;
            node.rows = Rows::fixed;
            node.fixed_rows = n * n;
            node.cols = 3 * static_cast<int64_t>(node.attrs.patch) * node.attrs.patch;
            node.dtype = activation_type;
            break;
        }
        case Op::prepend_row:
        case Op::drop_first_row:
            like(*in(0), in(0)->cols);
            node.fixed_rows += node.op == Op::prepend_row ? 1 : -1;
            break;
        case Op::add_table:
            if (!weight(1) || weight(1)->in != in(0)->cols || weight(1)->out < in(0)->fixed_rows) return clash("table of a wrong size");
            like(*in(0), in(0)->cols);
            break;
        case Op::put_rows:
            AWQ_TRY(cols_must_be(1, in(0)->cols));
            like(*in(0), in(0)->cols);
            break;
        case Op::norm_linear:
            if (!weight(2)) return clash("lacks its weight");
            AWQ_TRY(cols_must_be(0, weight(2)->in));
            like(*in(0), weight(2)->out);
            if (node.rows == Rows::outputs) node.dtype = DType::f32;
            break;
        case Op::norm_gate_up:
            if (!weight(2)) return clash("lacks its weight");
            AWQ_TRY(cols_must_be(0, weight(2)->in));
            like(*in(0), weight(2)->out / 2);
            break;
        case Op::norm_moe:
            if (!weight(1) || !weight(2) || !weight(3) || !weight(4) || !in(5)) return clash("lacks a weight or its residual");
            AWQ_TRY(cols_must_be(0, weight(2)->in));
            AWQ_TRY(cols_must_be(0, weight(3)->in));
            if (weight(2)->out != weight(3)->experts) return clash("router of a wrong size");
            if (weight(4)->in * 2 != weight(3)->out) return clash("down projections of a wrong size");
            AWQ_TRY(cols_must_be(5, weight(4)->out));
            like(*in(0), weight(4)->out);
            break;
        case Op::linear_add:
            if (!weight(1) || !in(3)) return clash("lacks its weight or residual");
            AWQ_TRY(cols_must_be(0, weight(1)->in));
            AWQ_TRY(cols_must_be(3, weight(1)->out));
            like(*in(0), weight(1)->out);
            break;
        case Op::rope_append:
            if (in(0)->cols != static_cast<int64_t>(node.attrs.heads) * node.attrs.head_dim) return clash("columns are not heads x head_dim");
            like(*in(0), in(0)->cols);
            break;
    }
    return {};
}

// ---- builder

NodeId GraphBuilder::append(Node node) {
    graph_.nodes.push_back(std::move(node));
    return static_cast<NodeId>(graph_.nodes.size()) - 1;
}

NodeId GraphBuilder::input(Input kind, Rows rows, int64_t cols, DType dtype, int64_t fixed_rows) {
    static const char* names[] = {"tokens", "positions", "sequence", "seq_begin", "rope_len", "page_table", "output_rows", "image_rows", "pixels", "features"};
    Node node;
    node.op = Op::input;
    node.name = names[static_cast<int>(kind)];
    node.attrs.input = kind;
    node.rows = rows;
    node.fixed_rows = fixed_rows;
    node.cols = cols;
    node.dtype = dtype;
    return append(std::move(node));
}

NodeId GraphBuilder::batch_input(Input kind) {
    NodeId& id = batch_inputs_[static_cast<int>(kind)];
    if (id == no_node) {
        Rows rows = kind == Input::output_rows ? Rows::outputs : Rows::tokens;
        id = input(kind, rows, 1, DType::i32);
    }
    return id;
}

NodeId GraphBuilder::weight(const Weight* weight) {
    if (!weight) return no_node;
    for (auto& [known, id] : weights_)
        if (known == weight) return id;
    Node node;
    node.op = Op::weight;
    node.name = weight->spec.name;
    node.rows = Rows::fixed;
    node.fixed_rows = weight->spec.out;
    node.cols = weight->spec.in;
    node.dtype = weight->spec.dtype;
    node.weight = weight;
    weights_.emplace_back(weight, append(std::move(node)));
    return weights_.back().second;
}

NodeId GraphBuilder::view(NodeId from, int64_t first_col, int64_t cols, const std::string& name) {
    Attrs attrs;
    attrs.offset = first_col;
    Node node;
    node.op = Op::view;
    node.name = name;
    node.in = {from};
    node.cols = cols;
    node.attrs = attrs;
    Status shape = infer_shape(graph_, backend_.activation_type(), node);
    if (!shape.ok()) fail(shape);
    return append(std::move(node));
}

NodeId GraphBuilder::op(Op op, const std::string& name, std::vector<NodeId> in, const Attrs& attrs) {
    Node node;
    node.op = op;
    node.name = name;
    node.in = std::move(in);
    node.attrs = attrs;
    if (Status shape = infer_shape(graph_, backend_.activation_type(), node); !shape.ok()) {
        fail(shape);
        return append(std::move(node));
    }
    bool fused = op >= Op::norm_linear;
    if (fused ? fuse_ && backend_.kernel(graph_, node, 1) : backend_.kernel(graph_, node, 1) != nullptr) return append(std::move(node));
    NodeId result = no_node;
    if (fused && lower(*this, op, name, node.in, attrs, result)) return result;
    fail(Status(Code::unsupported, name + ": the " + backend_.name() + " backend has no kernel for " + op_name(op)));
    return append(std::move(node));
}

}  // namespace awq
