#include "launcher/options.h"

#include <fstream>
#include <iostream>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "runtime/control/listen_address.h"

namespace phalanx::launcher {

namespace {

// CLI::Range takes its lower end, too.
std::string CheckFraction(const std::string& text) {
  double value = 0;
  if (absl::SimpleAtod(text, &value) && value > 0 && value <= 1) return "";
  return absl::StrCat("expected a number above 0 and at most 1, found ", text);
}

// CLI11 takes -1 for the largest number that there is.
std::string CheckUnsigned(const std::string& text) {
  uint64_t value = 0;
  if (absl::SimpleAtoi(text, &value)) return "";
  return absl::StrCat("expected a whole number from 0 to ", UINT64_MAX, ", found ", text);
}

}  // namespace

std::string CheckPositive(const std::string& text) {
  double value = 0;
  if (absl::SimpleAtod(text, &value) && value > 0) return "";
  return absl::StrCat("expected a number above 0, found ", text);
}

std::string CheckGiven(const std::string& text) {
  return text.empty() ? "expected a value, found nothing (an empty variable?)" : "";
}

std::string CheckHostPort(const std::string& text) {
  return std::string(control::ParseHostPort(text).status().message());
}

void AddDeviceOptions(CLI::App& app, RankOptions& o) {
  const std::string group = "Device";
  app.add_option("--device", o.device,
                 "cpu, or cuda: a GPU for each rank, by its number among its host's ranks")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--device-comm", o.device_comm,
         "Between GPUs: nccl (one rank a GPU), staged (through the hosts' memory; ranks may "
         "share GPUs), or auto (nccl; staged where ranks are threads)")
      ->check(CLI::IsMember({"auto", "nccl", "staged"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--gpu-memory-fraction", o.gpu_memory_fraction,
                 "Of each GPU's memory, what its ranks may take, weights and KV cache included")
      ->check(CheckFraction)
      ->capture_default_str()
      ->group(group);
}

absl::Status CheckDeviceFlags(const CLI::App& flags, const RankOptions& options) {
  if (options.device == "cuda") return absl::OkStatus();
  for (const char* name : {"--device-comm", "--gpu-memory-fraction", "--gpu"}) {
    const CLI::Option* flag = flags.get_option_no_throw(name);
    if (flag == nullptr || flag->count() == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is for --device cuda, but ranks are to compute on CPUs; give both or neither"));
  }
  return absl::OkStatus();
}

void AddNumericsOptions(CLI::App& app, RankOptions& o, const std::string& group) {
  app.add_option("--numerics", o.numerics,
                 "exact: an answer's bits don't depend on layout, batch or restarts; fast (GPUs "
                 "alone): they may, where cuBLASLt, NCCL and attention of prompts add in orders of "
                 "their own")
      ->check(CLI::IsMember({"exact", "fast"}))
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--weight-dtype", o.weight_dtype,
         "The layers' matrices are kept in the checkpoint's type (auto) or, of BF16, in FP8 "
         "(fp8_e4m3): about half the memory on GPUs; on CPUs the same answers, no less memory")
      ->check(CLI::IsMember({"auto", "fp8_e4m3"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-dtype", o.kv_dtype,
                 "Keys and values are kept in the embedding's type (auto) or in FP8 (fp8_e4m3), in "
                 "about half of 16 bits' memory")
      ->check(CLI::IsMember({"auto", "fp8_e4m3"}))
      ->capture_default_str()
      ->group(group);
}

absl::StatusOr<kernels::WeightFormat> ParseWeightDtype(const std::string& name) {
  if (name == "auto") return kernels::WeightFormat::kPlain;
  if (name == "fp8_e4m3") return kernels::WeightFormat::kF8E4M3;
  return absl::InvalidArgumentError(
      absl::StrCat("--weight-dtype ", name, ": expected auto or fp8_e4m3"));
}

absl::StatusOr<kernels::KvFormat> ParseKvDtype(const std::string& name) {
  if (name == "auto") return kernels::KvFormat::kPlain;
  if (name == "fp8_e4m3") return kernels::KvFormat::kF8E4M3;
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-dtype ", name, ": expected auto or fp8_e4m3"));
}

void AddRankOptions(CLI::App& app, RankOptions& o) {
  const std::string group = "Model and ranks";
  app.add_option("--model", o.model, "Hugging Face model directory")->required()->group(group);
  app.add_option("--layout", o.layout,
                 "Axes and sizes, e.g. dp=2,pp=2,tp=2 (left-out axes are 1, ep is the largest that "
                 "fits), or auto: what plan would choose")
      ->capture_default_str()
      ->group(group);
  AddDeviceOptions(app, o);
  app.add_option(
         "--threads", o.threads,
         "Compute threads per rank, on GPUs those that pack weights (default: the machine's "
         "cores divided by its ranks)")
      ->check(CLI::Range(0, 1024))
      ->group(group);
  app.add_option("--kv-memory", o.kv_memory,
                 "KV cache per rank, e.g. 2GiB (default: a quarter of the free memory, shared by "
                 "the ranks of the machine, and no more than 64 full contexts need; on a GPU what "
                 "weights and the largest step leave of --gpu-memory-fraction)")
      ->group(group);
  app.add_option("--kv-blocks", o.kv_blocks,
                 "KV cache in blocks of 32 tokens, instead of --kv-memory")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option("--max-context", o.max_context,
                 "Tokens of prompt and answer together (default: the model's)")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option("--max-step-tokens", o.max_step_tokens, "Tokens that one step may hold")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->group(group);
  app.add_option("--cpu-path", o.cpu_path,
                 "portable, avx2, avx512 or amx (default: the fastest; all give the same bits)")
      ->group(group);
  app.add_flag("!--no-keeper", o.keep_weights,
               "A rank that takes a dead one's place packs its weights again, in place of mapping "
               "what a process of its own has kept")
      ->group(group);
  app.add_option("--step-trace", o.step_trace,
                 "Directory to which each rank writes when it worked on which step, as JSON lines")
      ->group(group);
  const std::string profile = "Numerics profile (changing it may change bits)";
  AddNumericsOptions(app, o, profile);
  app.add_option("--reduction-leaves", o.reduction_leaves,
                 "Leaves of sharded sums; tp is at most this")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(profile);
  app.add_option("--sequence-stripes", o.sequence_stripes, "Stripes of a sequence's KV blocks")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(profile);
}

void AddServiceOptions(CLI::App& app, ServiceOptions& o) {
  app.add_option("--cluster", o.cluster_file,
                 "Configuration in YAML, see cluster-configs/; flags override it")
      ->group("Configuration");
  AddRankOptions(app, o.rank);
  app.get_option("--model")->required(false);
  app.get_option("--kv-blocks")->excludes("--kv-memory");
  const std::string workers = "Workers";
  app.add_option(
         "--workers", o.workers,
         "Who starts the ranks: mpirun, srun, threads (of this process), external (by hand; "
         "the command is printed) or auto (srun inside a Slurm allocation, else mpirun; "
         "threads where the layout is one rank and the command is run)")
      ->check(CLI::IsMember({"auto", "mpirun", "srun", "threads", "external"}))
      ->capture_default_str()
      ->group(workers);
  app.add_option("--mpirun", o.mpirun, "The mpirun to use")->capture_default_str()->group(workers);
  app.add_option("--srun", o.srun, "The srun to use")->capture_default_str()->group(workers);
  app.add_option(
         "--hosts", o.hosts,
         "Hosts and ranks that each may run, e.g. a:2,b:2, in rank order; replicas (dp) take "
         "them one after the other (default: the Slurm allocation, else this machine)")
      ->check(CheckGiven)
      ->group(workers);
  app.add_option("--hostfile", o.hostfile, "Hosts as lines \"a slots=2\", instead of --hosts")
      ->check(CheckGiven)
      ->excludes("--hosts")
      ->group(workers);
  app.add_option("--mpirun-arg", o.mpirun_args, "A further argument for mpirun; may be repeated")
      ->group(workers)
      ->allow_extra_args(false);
  app.add_option("--srun-arg", o.srun_args, "A further argument for srun; may be repeated")
      ->group(workers)
      ->allow_extra_args(false);
  app.add_option("--binding", o.binding,
                 "none: a rank may use every core that the job has on its host; core: mpirun or "
                 "srun gives each rank --threads cores of its own, for nodes that are yours alone")
      ->check(CLI::IsMember({"none", "core"}))
      ->capture_default_str()
      ->group(workers);
  app.add_option("--control-listen", o.control_listen,
                 "Where ranks connect to, HOST:PORT (default: 127.0.0.1:0, or 0.0.0.0:0 where "
                 "hosts are named)")
      ->group(workers);
  app.add_option("--start-timeout", o.start_timeout, "Seconds until every rank must have loaded")
      ->check(CheckPositive)
      ->capture_default_str()
      ->group(workers);
  app.add_option("--step-timeout", o.step_timeout, "Seconds after which a step counts as hung")
      ->check(CheckPositive)
      ->capture_default_str()
      ->group(workers);
  const auto seconds = [&](const char* flag, double& value, const char* help) {
    app.add_option(flag, value, help)->check(CheckPositive)->capture_default_str()->group(workers);
  };
  seconds("--heartbeat-timeout", o.heartbeat_timeout,
          "Seconds after which a rank that is not heard of counts as dead");
  seconds("--hang-timeout", o.hang_timeout,
          "Seconds without any progress of any rank after which a step counts as hung");
  seconds("--host-wait", o.host_wait,
          "Seconds to wait for a host that is away before the layout is planned without it");
  app.add_option("--max-restarts", o.max_restarts,
                 "Worker groups in a row that may die without having computed anything before "
                 "requests end; 0: a group that dies is not replaced")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str()
      ->group(workers);
  const std::string batching = "Batching";
  app.add_option("--max-sequences", o.max_sequences, "Sequences in one step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(batching);
  app.add_option("--max-queue", o.max_queue, "Requests that may wait")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str()
      ->group(batching);
  app.add_option("--prefill-chunk", o.prefill_chunk,
                 "Prompt tokens of one request per step (default: --max-step-tokens)")
      ->check(CLI::NonNegativeNumber)
      ->group(batching);
  app.add_flag("--prefix-reuse,!--no-prefix-reuse", o.prefix_reuse,
               "Take up cached beginnings of prompts (the default), or compute every prompt whole")
      ->group(batching);
}

void AddServingOptions(CLI::App& app, ServingOptions& o) {
  const std::string group = "Service";
  app.add_option("--listen", o.listen, "HOST:PORT for clients; port 0: any free one")
      ->capture_default_str()
      ->group(group);
  app.add_option("--model-name", o.model_name,
                 "What clients call the model (default: the last part of --model)")
      ->group(group);
  app.add_option("--max-request-bytes", o.max_request_bytes, "Largest request that is read")
      ->check(CLI::Range(int64_t{1024}, int64_t{INT32_MAX}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--grace", o.grace,
                 "Seconds that running requests may go on after SIGTERM or SIGINT")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
}

void AddRequestOptions(CLI::App& app, RequestOptions& o) {
  const std::string group = "Request";
  app.add_flag("--json", o.json, "One JSON object per answer")->group(group);
  app.add_option("--max-tokens", o.max_tokens, "Tokens to generate (default: up to the context)")
      ->group(group);
  app.add_option("--min-tokens", o.min_tokens, "Tokens before the answer may end")->group(group);
  app.add_option("--temperature", o.temperature,
                 "0: greedy (default: the checkpoint's generation_config.json, else 0)")
      ->group(group);
  app.add_option("--top-p", o.top_p, "Likeliest tokens up to this probability")->group(group);
  app.add_option("--top-k", o.top_k, "Likeliest tokens by number; 0: all")->group(group);
  app.add_option("--min-p", o.min_p, "Tokens at least this likely, relative to the likeliest")
      ->group(group);
  app.add_option("--repetition-penalty", o.repetition_penalty, "1: off")->group(group);
  app.add_option("--frequency-penalty", o.frequency_penalty, "0: off")->group(group);
  app.add_option("--presence-penalty", o.presence_penalty, "0: off")->group(group);
  app.add_option("--logit-bias", o.logit_bias,
                 "ID=VALUE, added to a token's logit; may be repeated")
      ->group(group)
      ->allow_extra_args(false);
  app.add_option("--seed", o.seed, "Decides all randomness (default: drawn; --json shows it)")
      ->check(CheckUnsigned)
      ->group(group);
  app.add_option("--stop", o.stop, "Text that ends the answer; may be repeated")
      ->group(group)
      ->allow_extra_args(false);
  app.add_option("--stop-token-ids", o.stop_token_ids, "Token ids that end the answer, 1,2,3")
      ->delimiter(',')
      ->group(group)
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on past the model's end token")->group(group);
  app.add_option("--logprobs", o.logprobs,
                 "With --json: logprobs of each token and of the K likeliest")
      ->needs("--json")
      ->group(group);
  app.add_option("--prompt-logprobs", o.prompt_logprobs, "Likewise for the prompt's tokens")
      ->needs("--json")
      ->group(group);
  app.add_option("-n,--n", o.n, "Answers to the same prompt")->capture_default_str()->group(group);
  app.add_option("--cache-salt", o.cache_salt, "Share cached prefixes only with equal salts")
      ->group(group);
  app.add_flag("--parse-special", o.parse_special,
               "Read the text of special tokens in the prompt as those tokens")
      ->group(group);
  app.add_flag("--no-special-tokens", o.no_special_tokens,
               "Don't add the tokenizer's own tokens (BOS) to the prompt")
      ->group(group);
}

void AddPromptOptions(CLI::App& app, PromptOptions& o) {
  const std::string group = "Prompt";
  app.add_option("--prompt", o.prompts, "Text to go on from; may be repeated")
      ->group(group)
      ->allow_extra_args(false);
  app.add_option("--token-ids", o.token_ids, "Token ids to go on from, 1,2,3")->group(group);
  app.add_option("--prompts-file", o.prompts_file,
                 "JSON lines (-: on stdin): a string, an array of token ids, or an object with "
                 "\"prompt\" or "
                 "\"token_ids\" and optionally \"id\", \"seed\", \"max_tokens\"")
      ->group(group);
}

absl::StatusOr<std::vector<std::pair<int32_t, float>>> ParseLogitBias(
    const std::vector<std::string>& entries) {
  std::vector<std::pair<int32_t, float>> out;
  for (const std::string& entry : entries) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    int32_t id = 0;
    float value = 0;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit-bias \"", entry, "\" is not ID=VALUE, e.g. 42=-1.5"));
    }
    out.emplace_back(id, value);
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(item, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--token-ids: \"", item, "\" is not a token id; write them as 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

namespace {

absl::StatusOr<Prompt> ParsePromptLine(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  Prompt prompt;
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(
        "not JSON in UTF-8; every line is one string, array or object");
  }
  const auto ids = [&](const nlohmann::json& array) -> absl::Status {
    prompt.is_text = false;
    for (const nlohmann::json& id : array) {
      if (!id.is_number_integer() || id < INT32_MIN || id > INT32_MAX) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id.dump(), " is no 32-bit integer"));
      }
      prompt.token_ids.push_back(id.get<int32_t>());
    }
    return absl::OkStatus();
  };
  if (json.is_string()) {
    prompt.text = json.get<std::string>();
    return prompt;
  }
  if (json.is_array()) {
    if (absl::Status status = ids(json); !status.ok()) return status;
    return prompt;
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError("expected a string, an array of token ids or an object");
  }
  for (const auto& [key, value] : json.items()) {
    if (key == "prompt" && value.is_string()) {
      prompt.text = value.get<std::string>();
    } else if (key == "token_ids" && value.is_array()) {
      if (absl::Status status = ids(value); !status.ok()) return status;
    } else if (key == "id" && value.is_string()) {
      prompt.id = value.get<std::string>();
    } else if (key == "seed" && value.is_number_unsigned()) {
      prompt.seed = value.get<uint64_t>();
    } else if (key == "max_tokens" && value.is_number_integer()) {
      prompt.max_tokens = value.get<int64_t>();
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("key \"", key,
                       "\" is unknown or of the wrong type; the keys are prompt (a string), "
                       "token_ids (an array), id (a string), seed and max_tokens (integers)"));
    }
  }
  if (json.contains("prompt") == json.contains("token_ids")) {
    return absl::InvalidArgumentError("expected either \"prompt\" or \"token_ids\"");
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const PromptOptions& options) {
  std::vector<Prompt> out;
  for (const std::string& text : options.prompts) {
    Prompt prompt;
    prompt.text = text;
    out.push_back(std::move(prompt));
  }
  if (!options.token_ids.empty()) {
    absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(options.token_ids);
    if (!ids.ok()) return ids.status();
    Prompt prompt;
    prompt.is_text = false;
    prompt.token_ids = *std::move(ids);
    out.push_back(std::move(prompt));
  }
  if (!options.prompts_file.empty()) {
    std::ifstream file;
    const bool is_stdin = options.prompts_file == "-";
    if (!is_stdin) file.open(options.prompts_file);
    std::istream& in = is_stdin ? std::cin : file;
    if (!in) {
      return absl::NotFoundError(
          absl::StrCat("--prompts-file ", options.prompts_file, ": can't be read"));
    }
    const size_t before = out.size();
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      absl::StatusOr<Prompt> prompt = ParsePromptLine(line);
      if (!prompt.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(options.prompts_file, ":", number, ": ", prompt.status().message()));
      }
      out.push_back(*std::move(prompt));
    }
    if (in.bad()) {  // a directory can be opened, but not read
      return absl::InvalidArgumentError(absl::StrCat("--prompts-file ", options.prompts_file,
                                                     ": can't be read; expected a file"));
    }
    if (out.size() == before) {
      return absl::InvalidArgumentError(absl::StrCat("--prompts-file ", options.prompts_file,
                                                     ": holds no prompt; expected one a line"));
    }
  }
  if (out.empty()) {
    return absl::InvalidArgumentError("no prompt; give --prompt, --token-ids or --prompts-file");
  }
  return out;
}

}  // namespace phalanx::launcher
