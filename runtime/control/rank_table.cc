#include "runtime/control/rank_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/coordinator/agreement.h"

namespace phalanx::control {
namespace {

using Clock = std::chrono::steady_clock;

// "its what is A, that of whose is B".
std::string Differ(absl::string_view what, absl::string_view its, absl::string_view whose,
                   absl::string_view theirs) {
  return absl::StrCat("its ", what, " is ", its, ", that of ", whose, " is ", theirs);
}

std::string Quoted(const std::string& text) { return absl::StrCat("\"", text, "\""); }

coordinator::RankInfo ToInfo(const v1::Register& rank) {
  coordinator::RankInfo info;
  info.rank = rank.rank();
  info.host = rank.host();
  info.pid = rank.pid();
  info.device = rank.device();
  info.op_digest = rank.op_digest();
  info.checkpoint_digest = rank.checkpoint_digest();
  return info;
}

}  // namespace

std::string Describe(const v1::Register& rank) {
  return absl::StrCat("rank ", rank.rank(), " (host ", rank.host(), ", pid ", rank.pid(), ")");
}

std::string Whereabouts(const v1::Heartbeat& heartbeat) {
  return absl::StrCat("step ", heartbeat.step(), ", collective ", heartbeat.collective());
}

std::string RankTable::ReasonToRefuse(const v1::Register& rank) const {
  if (rank.epoch() != 0 && rank.epoch() != options_.epoch) {
    return absl::StrCat("it was started for epoch ", rank.epoch(), ", the group is at epoch ",
                        options_.epoch, ": its own group has been replaced");
  }
  if (rank.world_size() != options_.world_size) {
    return absl::StrCat("its world has ", rank.world_size(), " ranks, the layout ",
                        options_.layout.empty() ? "" : absl::StrCat(options_.layout, " "),
                        "of this coordinator needs ", options_.world_size,
                        "; start the workers with mpirun -np ", options_.world_size);
  }
  if (rank.rank() < 0 || rank.rank() >= options_.world_size) {
    return absl::StrCat("rank ", rank.rank(), " is not in 0 .. ", options_.world_size - 1);
  }
  const Rank& slot = ranks_[rank.rank()];
  if (slot.stream != nullptr) {
    return absl::StrCat("rank ", rank.rank(), " is already there: host ", slot.info.host(),
                        ", pid ", slot.info.pid(), "; end one of the two groups of workers");
  }
  const std::string coordinator = "this coordinator";
  if (!options_.layout.empty() && rank.layout() != options_.layout) {
    return Differ("layout", rank.layout(), coordinator, options_.layout);
  }
  // Before the profile, which names the model's types.
  if (!options_.checkpoint_digest.empty() &&
      rank.checkpoint_digest() != options_.checkpoint_digest) {
    return absl::StrCat(Differ("checkpoint digest", rank.checkpoint_digest(), coordinator,
                               options_.checkpoint_digest),
                        "; both must read the same model directory");
  }
  if (!options_.profile.empty() && rank.profile() != options_.profile) {
    return Differ("numerics profile", Quoted(rank.profile()), coordinator,
                  Quoted(options_.profile));
  }
  // `told` 0: the rank's says nothing.
  const auto too_small = [](int64_t told, int64_t needed) { return told != 0 && told < needed; };
  if (too_small(rank.max_step_tokens(), options_.max_step_tokens)) {
    return absl::StrCat("it takes steps of up to ", rank.max_step_tokens(), " tokens, ",
                        coordinator, " makes them of up to ", options_.max_step_tokens,
                        "; start the workers with --max-step-tokens ", options_.max_step_tokens);
  }
  if (too_small(rank.max_context(), options_.max_context)) {
    return absl::StrCat("it takes contexts of up to ", rank.max_context(), " tokens, ", coordinator,
                        " of up to ", options_.max_context,
                        "; start the workers with --max-context ", options_.max_context);
  }
  // Those that are there agree with each other, so one of them stands for all.
  const auto other =
      std::find_if(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.stream != nullptr; });
  if (other == ranks_.end()) return "";
  const std::string whose = Describe(other->info);
  if (rank.layout() != other->info.layout()) {
    return Differ("layout", rank.layout(), whose, other->info.layout());
  }
  if (rank.profile() != other->info.profile()) {
    return Differ("numerics profile", Quoted(rank.profile()), whose, Quoted(other->info.profile()));
  }
  return std::string(coordinator::CheckAgreement(ToInfo(other->info), ToInfo(rank)).message());
}

void RankTable::Register(const std::shared_ptr<RankStream>& stream, const v1::Register& rank) {
  Rank& slot = ranks_[rank.rank()];
  slot = Rank();
  slot.stream = stream;
  slot.info = rank;
  slot.info.clear_token();
  slot.heard = Clock::now();
}

RankTable::Rank* RankTable::Find(const RankStream* stream) {
  for (Rank& rank : ranks_) {
    if (rank.stream.get() == stream) return &rank;
  }
  return nullptr;
}

int RankTable::num_ready() const {
  return static_cast<int>(std::count_if(ranks_.begin(), ranks_.end(),
                                        [](const Rank& r) { return r.stream && r.ready; }));
}

bool RankTable::all_gone() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const Rank& rank) { return rank.stream == nullptr; });
}

std::string RankTable::Missing() const {
  std::vector<std::string> absent;
  std::vector<std::string> loading;
  for (int i = 0; i < options_.world_size; ++i) {
    if (ranks_[i].stream == nullptr) {
      absent.push_back(absl::StrCat(i));
    } else if (!ranks_[i].ready) {
      loading.push_back(Describe(ranks_[i].info));
    }
  }
  std::string text;
  if (!absent.empty()) {
    text = absl::StrCat(absent.size(), " of ", options_.world_size, " ranks have not registered",
                        options_.address.empty() ? "" : absl::StrCat(" at ", options_.address),
                        " (", absl::StrJoin(absent, ", "), ")");
  }
  if (!loading.empty()) {
    absl::StrAppend(&text, text.empty() ? "" : "; ",
                    "still loading: ", absl::StrJoin(loading, ", "));
  }
  return text;
}

bool RankTable::all_registered() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const Rank& rank) { return rank.stream != nullptr; });
}

bool RankTable::any_registered() const {
  return std::any_of(ranks_.begin(), ranks_.end(),
                     [](const Rank& rank) { return !rank.info.host().empty(); });
}

const RankTable::Rank* RankTable::MostSilent() const {
  const Rank* silent = nullptr;
  for (const Rank& rank : ranks_) {
    if (rank.stream == nullptr) continue;
    if (silent == nullptr || rank.heard < silent->heard) silent = &rank;
  }
  return silent;
}

void RankTable::ForgiveSilence(Clock::duration gap) {
  for (Rank& rank : ranks_) rank.heard += gap;
}

std::string RankTable::LastHeard() const {
  std::vector<const Rank*> by_progress;
  by_progress.reserve(ranks_.size());
  for (const Rank& rank : ranks_) by_progress.push_back(&rank);
  std::stable_sort(by_progress.begin(), by_progress.end(), [](const Rank* a, const Rank* b) {
    return std::pair(a->heartbeat.step(), a->heartbeat.collective()) <
           std::pair(b->heartbeat.step(), b->heartbeat.collective());
  });
  std::vector<std::string> texts;
  texts.reserve(by_progress.size());
  for (const Rank* rank : by_progress) {
    texts.push_back(absl::StrCat(Describe(rank->info), ": ", Whereabouts(rank->heartbeat)));
  }
  return absl::StrJoin(texts, "; ");
}

void RankTable::Progress(int64_t* loaded, int64_t* total) const {
  *loaded = 0;
  *total = 0;
  for (const Rank& rank : ranks_) {
    *loaded += rank.progress.bytes_loaded();
    *total += rank.progress.bytes_total();
  }
}

coordinator::GroupInfo RankTable::MakeInfo() const {
  coordinator::GroupInfo info;
  info.epoch = options_.epoch;
  info.layout = options_.layout.empty() ? ranks_[0].info.layout() : options_.layout;
  for (const Rank& rank : ranks_) {
    coordinator::RankInfo& to = info.ranks.emplace_back(ToInfo(rank.info));
    to.weight_bytes = rank.sizes.weight_bytes();
    to.kv_block_bytes = rank.sizes.kv_block_bytes();
    to.kv_blocks = rank.sizes.kv_blocks();
    to.content_digest = rank.sizes.content_digest();
    const v1::RankTimes& times = rank.sizes.times();
    to.times = {absl::Microseconds(times.mpi_init()),
                absl::Microseconds(times.open()),
                absl::Microseconds(times.register_()),
                absl::Microseconds(times.weights()),
                times.weights_were_kept(),
                absl::Microseconds(times.agreement()),
                absl::Microseconds(times.kv()),
                absl::Microseconds(times.total())};
  }
  return info;
}

std::vector<RankHealth> RankTable::Health() const {
  std::vector<RankHealth> health;
  for (const Rank& rank : ranks_) {
    if (rank.stream == nullptr) continue;
    health.push_back({rank.info.rank(), rank.heartbeat.step(), rank.heartbeat.collective(),
                      absl::FromChrono(Clock::now() - rank.heard), options_.replica});
  }
  return health;
}

std::vector<std::shared_ptr<RankStream>> RankTable::streams() const {
  std::vector<std::shared_ptr<RankStream>> streams;
  for (const Rank& rank : ranks_) {
    if (rank.stream != nullptr) streams.push_back(rank.stream);
  }
  return streams;
}

std::vector<std::shared_ptr<RankStream>> RankTable::TakeStreams() {
  std::vector<std::shared_ptr<RankStream>> streams = this->streams();
  for (Rank& rank : ranks_) rank.stream.reset();
  return streams;
}

}  // namespace phalanx::control
