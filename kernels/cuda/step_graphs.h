// The segments of a step (recorder.h) replayed as CUDA graphs. One graph launch takes the host
// about as long as two kernel launches, and the device goes from one kernel of a graph to the next
// without asking the host.
//
// A graph is kept for each segment of a step by its place in the step, the step's rows rounded up
// to a power of two, and its topology: which kernels, in which order. Where a segment comes that a
// graph is kept for, the nodes that differ in grid or arguments are updated, and the graph is
// launched: in a decode step that is the upload and little else, since what changes from step to
// step (ids, positions, slots, block tables) is staged at addresses that don't. Rows are part of
// the key so that steps of one row and of many, taken in turns, don't update each other's nodes.
//
// Instantiating a graph costs as much as many launches, so a segment is launched kernel by kernel
// the first time that it is seen. Neither choice changes a bit of a result.
//
// Free of CUDA: the driver's calls are behind GraphApi.
#ifndef PHALANX_KERNELS_CUDA_STEP_GRAPHS_H_
#define PHALANX_KERNELS_CUDA_STEP_GRAPHS_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

#include "kernels/cuda/recorder.h"

namespace phalanx::kernels::cuda {

// What is done with segments on one stream. Errors that cost the device's context end the process
// inside.
class GraphApi {
 public:
  // An instantiated graph: a chain of the upload, if there is one, and the kernels.
  using Graph = void*;

  virtual ~GraphApi() = default;
  // Enqueues the upload and each kernel by itself.
  virtual void Launch(const Segment& segment) = 0;
  // Null where the driver has no room for another graph.
  virtual Graph Build(const Segment& segment) = 0;
  // Makes one node what it is in `segment`, of the same topology. Work that was launched before
  // isn't touched. False: the driver can't; the graph is then good for nothing but Destroy.
  virtual bool UpdateUpload(Graph graph, const Segment& segment) = 0;
  virtual bool UpdateKernel(Graph graph, const Segment& segment, size_t index) = 0;
  virtual void Launch(Graph graph) = 0;
  // Work that was launched before goes on.
  virtual void Destroy(Graph graph) = 0;
};

struct StepGraphsOptions {
  // Segments remembered; the one unused for longest makes room.
  size_t most_graphs = 1024;
  // Segments of fewer kernels are launched kernel by kernel.
  size_t least_kernels = 4;
  // Builds a graph the first time that a segment is seen: so that tests see more graphs.
  bool build_at_once = false;
};

// For status and tests, since the beginning.
struct StepGraphsCounts {
  int64_t launched = 0;       // graphs
  int64_t plain = 0;          // segments launched kernel by kernel
  int64_t built = 0;          // graphs
  int64_t updated_nodes = 0;  // kernels; every launch may update its upload, too
  int64_t evicted = 0;        // segments forgotten
};

class StepGraphs {
 public:
  // `api` must outlive this.
  explicit StepGraphs(GraphApi& api, const StepGraphsOptions& options = {})
      : api_(api), options_(options) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // A step of `rows` rows begins.
  void BeginStep(int64_t rows);
  // Enqueues the step's next segment.
  void Run(const Segment& segment);

  const StepGraphsCounts& counts() const { return counts_; }
  // 0 rows or 1: 0; 2: 1; 3 and 4: 2; 5 to 8: 3; ...
  static int Bucket(int64_t rows);

 private:
  struct Key {
    int place;   // of the segment in its step
    int bucket;  // of the step's rows
    uint64_t topology;
    bool operator==(const Key& other) const {
      return place == other.place && bucket == other.bucket && topology == other.topology;
    }
  };
  struct HashKey {
    size_t operator()(const Key& key) const;
  };
  struct Kept {
    Key key;
    GraphApi::Graph graph = nullptr;  // null: seen once, or refused
    bool refused = false;             // the driver had no room for it
    Segment segment;                  // what `graph` holds
  };

  // The entry of `key`, now the youngest. `is_new`: there was none.
  Kept& Find(const Key& key, bool* is_new);
  // False: `kept` has no graph any more.
  bool Update(Kept& kept, const Segment& segment);
  void Drop(Kept& kept);

  GraphApi& api_;
  const StepGraphsOptions options_;
  StepGraphsCounts counts_;
  int bucket_ = 0;
  int place_ = 0;
  std::list<Kept> kept_;  // youngest first
  std::unordered_map<Key, std::list<Kept>::iterator, HashKey> places_;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_STEP_GRAPHS_H_
