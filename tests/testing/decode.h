// Runs a checkpoint's decoder over given tokens with ranks as threads, for parity and layout tests.
#ifndef PHALANX_TESTS_TESTING_DECODE_H_
#define PHALANX_TESTS_TESTING_DECODE_H_

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/decoder.h"
#include "runtime/worker/parallel_context.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::testing {

struct DecodeOptions {
  parallel::Layout layout = {};
  int64_t shard_rows = 32;
  int threads = 1;
  kernels::CpuPath path = kernels::AvailableCpuPaths().back();
  int64_t chunk = 1 << 20;  // tokens per forward pass
  int reduction_leaves = 8;
  kernels::WeightFormat weights = kernels::WeightFormat::kPlain;
  kernels::KvFormat kv = kernels::KvFormat::kPlain;
  // Of each rank; ranks past its end have none.
  std::vector<model::WeightStore*> stores = {};
  // Where ranks compute on a GPU that they share, instead of the CPU.
  std::optional<kernels::CudaOptions> cuda = {};
};

// A rank's op set, and the axes over its memory.
struct RankDevice {
  std::unique_ptr<kernels::Kernels> kernels;
  worker::ParallelContext context;  // borrows the kernels
};
inline absl::StatusOr<RankDevice> MakeRankDevice(const DecodeOptions& options,
                                                 comm::Communicator& group) {
  kernels::DeviceOptions device;
  device.cpu = {options.threads, options.path};
  if (options.cuda) {
    device.kind = kernels::DeviceKind::kCuda;
    device.cuda = *options.cuda;
  }
  auto kernels = kernels::CreateKernels(device);
  if (!kernels.ok()) return kernels.status();
  auto context = worker::ParallelContext::Create(options.layout, group);
  if (!context.ok()) return context.status();
  absl::Status bound = context->BindDevice(**kernels, worker::DeviceTransport::kStaged);
  if (!bound.ok()) return bound;
  return RankDevice{*std::move(kernels), *std::move(context)};
}

// Logits [tokens, vocab_size] of every position of `ids`, fed from position 0.
inline absl::StatusOr<std::vector<float>> DecodeLogits(const std::string& directory,
                                                       const std::vector<int32_t>& ids,
                                                       const DecodeOptions& options) {
  std::vector<float> out;
  const std::vector<absl::Status> statuses =
      RunRanks(options.layout.group_size(), [&](comm::Communicator& group) -> absl::Status {
        auto checkpoint = checkpoint::Checkpoint::Open(directory);
        if (!checkpoint.ok()) return checkpoint.status();
        auto device = MakeRankDevice(options, group);
        if (!device.ok()) return device.status();
        // A peer may be a minute behind: an emulated device under a sanitizer on a busy machine.
        // How long a test may take is CTest's affair.
        device->context.set_timeout(absl::InfiniteDuration());
        const auto& kernels = device->kernels;
        model::DecoderOptions decoder_options;
        const int64_t n = static_cast<int64_t>(ids.size());
        decoder_options.max_rows = n;
        decoder_options.shard_rows = options.shard_rows;
        decoder_options.profile.reduction_leaves = options.reduction_leaves;
        decoder_options.profile.weight_format = options.weights;
        decoder_options.profile.kv = options.kv;
        decoder_options.packer = std::string(kernels::Name(options.path));
        if (static_cast<size_t>(group.rank()) < options.stores.size()) {
          decoder_options.store = options.stores[group.rank()];
        }
        auto decoder =
            model::Decoder::Load(**checkpoint, decoder_options, *kernels, device->context.groups());
        if (!decoder.ok()) return decoder.status();
        const int64_t blocks = n / kernels::kBlockTokens + 1;
        if (absl::Status status = (*decoder)->AllocateKv(blocks); !status.ok()) return status;
        // Blocks in an order of no meaning: where a block lies must not matter. Those of other
        // ranks' stripes are not here.
        std::vector<int32_t> table(blocks);
        std::iota(table.begin(), table.end(), 0);
        std::reverse(table.begin(), table.end());
        const parallel::Range stripes = (*decoder)->stripes();
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t stripe = b % decoder_options.profile.sequence_stripes;
          if (stripe < stripes.begin || stripe >= stripes.end) table[b] = -1;
        }
        for (int64_t begin = 0; begin < n; begin += options.chunk) {
          const int64_t count = std::min(options.chunk, n - begin);
          model::Batch batch;
          batch.Append(ids.data() + begin, count, static_cast<int32_t>(begin), table.data());
          kernels->BeginStep(count);
          if (absl::Status status = (*decoder)->Forward(batch); !status.ok()) return status;
          std::vector<int32_t> rows(count);
          std::iota(rows.begin(), rows.end(), 0);
          const absl::Status status =
              (*decoder)->Logits(rows, [&](int64_t, kernels::TensorView logits) {
                const size_t end = out.size();
                out.resize(end + logits.rows * logits.cols);
                for (int64_t i = 0; i < logits.rows; ++i) {
                  kernels->CopyOut(&out[end + i * logits.cols], logits.f32() + i * logits.stride,
                                   logits.cols * 4);
                }
              });
          if (!status.ok()) return status;
          kernels->EndStep();
        }
        // What was enqueued uses this rank's memory and its peers'.
        kernels->Synchronize();
        return absl::OkStatus();
      });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return out;
}

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_DECODE_H_
