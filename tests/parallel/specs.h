// Models and clusters for tests, from published facts.
#ifndef PHALANX_TESTS_PARALLEL_SPECS_H_
#define PHALANX_TESTS_PARALLEL_SPECS_H_

#include <string>

#include "parallel/machine.h"
#include "parallel/model_spec.h"

namespace phalanx::parallel {

inline ModelSpec Llama405b() {
  ModelSpec spec;
  spec.name = "Llama-3.1-405B";
  spec.shape.num_layers = 126;
  spec.shape.hidden_size = 16384;
  spec.shape.intermediate_size = 53248;
  spec.shape.num_heads = 128;
  spec.shape.num_kv_heads = 8;
  spec.shape.head_dim = 128;
  spec.shape.vocab_size = 128256;
  spec.max_positions = 131072;
  return spec;
}

inline ModelSpec Mixtral8x22b() {
  ModelSpec spec;
  spec.name = "Mixtral-8x22B";
  spec.shape.num_layers = 56;
  spec.shape.hidden_size = 6144;
  spec.shape.intermediate_size = 16384;
  spec.shape.num_heads = 48;
  spec.shape.num_kv_heads = 8;
  spec.shape.head_dim = 128;
  spec.shape.vocab_size = 32768;
  spec.shape.num_experts = 8;
  spec.shape.experts_per_token = 2;
  spec.shape.expert_intermediate_size = 16384;
  spec.max_positions = 65536;
  return spec;
}

inline ModelSpec Qwen235b() {
  ModelSpec spec;
  spec.name = "Qwen3-235B-A22B";
  spec.shape.num_layers = 94;
  spec.shape.hidden_size = 4096;
  spec.shape.intermediate_size = 12288;
  spec.shape.num_heads = 64;
  spec.shape.num_kv_heads = 4;
  spec.shape.head_dim = 128;
  spec.shape.vocab_size = 151936;
  spec.shape.num_experts = 128;
  spec.shape.experts_per_token = 8;
  spec.shape.expert_intermediate_size = 1536;
  spec.qk_norm = true;
  spec.max_positions = 40960;
  return spec;
}

// A model of about 8 billion parameters that fits one H100.
inline ModelSpec Llama8b() {
  ModelSpec spec;
  spec.name = "Llama-3.1-8B";
  spec.shape.num_layers = 32;
  spec.shape.hidden_size = 4096;
  spec.shape.intermediate_size = 14336;
  spec.shape.num_heads = 32;
  spec.shape.num_kv_heads = 8;
  spec.shape.head_dim = 128;
  spec.shape.vocab_size = 128256;
  spec.max_positions = 131072;
  return spec;
}

inline NodeSpec H100Node(const std::string& name, int devices = 8) {
  NodeSpec node;
  node.name = name;
  node.devices = devices;
  node.memory_bytes = int64_t{80} << 30;
  node.read_bytes_per_s = 2.8e12;
  node.matrix_flops_per_s = 600e12;
  node.op_s = 3e-6;
  node.link = {10e-6, 350e9};
  node.network = {20e-6, 360e9};
  return node;
}

inline ClusterSpec H100Cluster(int nodes, int devices = 8) {
  ClusterSpec cluster;
  for (int i = 0; i < nodes; ++i) cluster.nodes.push_back(H100Node("h100", devices));
  cluster.handover_s = 50e-6;
  return cluster;
}

}  // namespace phalanx::parallel

#endif  // PHALANX_TESTS_PARALLEL_SPECS_H_
