// Flags that several commands share, in the groups that --help shows.
#ifndef PHALANX_LAUNCHER_OPTIONS_H_
#define PHALANX_LAUNCHER_OPTIONS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"
#include "runtime/coordinator/request.h"

// CLI11 (declared alone: its header takes the compiler ten seconds).
namespace CLI {
class App;
}  // namespace CLI

namespace phalanx::launcher {

// For an option's check(): a number above 0, which NaN isn't. Empty: it is; else why not.
std::string CheckPositive(const std::string& text);
// Likewise: any text but none, which is a variable that wasn't set rather than a wish.
std::string CheckGiven(const std::string& text);
// Likewise: HOST:PORT.
std::string CheckHostPort(const std::string& text);

// What a rank needs to know.
struct RankOptions {
  std::string model;
  std::string layout = "tp=1";
  std::string device = "cpu";        // or cuda
  std::string device_comm = "auto";  // of cuda: auto, nccl, staged
  double gpu_memory_fraction = 0.9;  // of each device, that ranks may take
  int threads = 0;                   // 0: the machine's cores divided by its ranks
  std::string cpu_path;              // empty: the fastest that the machine has
  std::string kv_memory;             // empty: a share of the free memory; of a GPU what is left
  int64_t kv_blocks = 0;             // 0: by kv_memory
  int64_t max_context = 0;           // 0: the checkpoint's
  int64_t max_step_tokens = 512;
  std::string step_trace;             // directory; empty: none
  std::string numerics = "exact";     // or fast, of cuda
  std::string weight_dtype = "auto";  // or fp8_e4m3
  std::string kv_dtype = "auto";      // or fp8_e4m3
  int reduction_leaves = 8;
  int sequence_stripes = 8;
  bool keep_weights = true;  // packed weights outlive the rank, for the one that takes its place
};
void AddRankOptions(CLI::App& app, RankOptions& options);
// --device, --device-comm and --gpu-memory-fraction, which AddRankOptions() has.
void AddDeviceOptions(CLI::App& app, RankOptions& options);
// --numerics, --weight-dtype and --kv-dtype, likewise.
void AddNumericsOptions(CLI::App& app, RankOptions& options, const std::string& group);
// Flags of GPUs beside what makes them void: INVALID_ARGUMENT names one that the command line gives
// where `options.device`, by now settled, is cpu.
absl::Status CheckDeviceFlags(const CLI::App& flags, const RankOptions& options);
// What --weight-dtype and --kv-dtype say.
absl::StatusOr<kernels::WeightFormat> ParseWeightDtype(const std::string& name);
absl::StatusOr<kernels::KvFormat> ParseKvDtype(const std::string& name);

// What starts the ranks and how they are scheduled.
struct ServiceOptions {
  std::string cluster_file;  // YAML, see launcher/config.h; empty: flags alone
  RankOptions rank;
  std::string workers = "auto";         // auto, mpirun, srun, threads, external
  std::string auto_workers = "mpirun";  // what starts processes where workers is auto
  std::string mpirun = "mpirun";
  std::string hosts;             // mpirun --host
  std::string hostfile;          // mpirun --hostfile
  bool hosts_are_named = false;  // by flag or file, not by an allocation
  std::vector<std::string> mpirun_args;
  std::string srun = "srun";
  std::vector<std::string> srun_args;
  std::string binding = "none";  // of ranks to cores: none, core
  // For ranks that are processes, by name: what the configuration says to NCCL.
  std::map<std::string, std::string> rank_environment;
  std::string control_listen;  // empty: loopback, or all addresses where hosts are named
  double start_timeout = 600;  // seconds
  double step_timeout = 300;
  double heartbeat_timeout = 10;
  double hang_timeout = 30;
  double host_wait = 30;
  int max_restarts = 10;  // worker groups in a row that compute nothing; 0: none is replaced
  int64_t max_sequences = 64;
  int64_t max_queue = 1024;
  int64_t prefill_chunk = 0;
  bool prefix_reuse = true;
  bool needs_text = true;  // of prompts: a model without a tokenizer is refused
};
// Includes the flags of AddRankOptions(); --model may be left to the file.
void AddServiceOptions(CLI::App& app, ServiceOptions& options);

// The port for clients.
struct ServingOptions {
  std::string listen = "127.0.0.1:50051";  // HOST:PORT; port 0: any free one
  std::string model_name;                  // empty: the last part of the model's path
  int64_t max_request_bytes = int64_t{128} << 20;
  double grace = 30;  // seconds that running requests may go on after a signal to stop
};
void AddServingOptions(CLI::App& app, ServingOptions& options);

// What a request asks for; absent values take the server's defaults.
struct RequestOptions {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> frequency_penalty;
  std::optional<double> presence_penalty;
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> logit_bias;  // ID=VALUE
  bool ignore_eos = false;
  std::optional<int64_t> logprobs;
  std::optional<int64_t> prompt_logprobs;
  int64_t n = 1;
  std::string cache_salt;
  bool parse_special = false;
  bool no_special_tokens = false;
  bool json = false;  // how the answer is printed, of which only JSON has logprobs
};
void AddRequestOptions(CLI::App& app, RequestOptions& options);

// "ID=VALUE" entries. INVALID_ARGUMENT names the one that isn't.
absl::StatusOr<std::vector<std::pair<int32_t, float>>> ParseLogitBias(
    const std::vector<std::string>& entries);
// "1,2,3". INVALID_ARGUMENT names the item that is no 32-bit integer.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text);

// A prompt as text or as ids.
struct Prompt {
  std::string text;
  std::vector<int32_t> token_ids;
  bool is_text = true;
  std::string id;                     // request id, may be empty
  std::optional<uint64_t> seed;       // of this prompt alone
  std::optional<int64_t> max_tokens;  // likewise
};
struct PromptOptions {
  std::vector<std::string> prompts;
  std::string token_ids;
  std::string prompts_file;
};
void AddPromptOptions(CLI::App& app, PromptOptions& options);
// The prompts of all three flags in that order. --prompts-file holds a JSON value a line: a string,
// an array of token ids, or an object with "prompt" or "token_ids" and optionally "id", "seed" and
// "max_tokens"; "-" is stdin. INVALID_ARGUMENT names file, line and fault; no prompt at all is one,
// too.
absl::StatusOr<std::vector<Prompt>> ReadPrompts(const PromptOptions& options);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_OPTIONS_H_
