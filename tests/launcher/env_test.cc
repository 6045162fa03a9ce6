#include "launcher/env.h"

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

const char* const kNames[] = {"OMPI_COMM_WORLD_SIZE",
                              "OMPI_COMM_WORLD_RANK",
                              "OMPI_COMM_WORLD_LOCAL_SIZE",
                              "OMPI_COMM_WORLD_LOCAL_RANK",
                              "PMIX_RANK",
                              "SLURM_JOB_ID",
                              "SLURM_STEP_ID",
                              "SLURM_PROCID",
                              "SLURM_LOCALID",
                              "SLURM_NODEID",
                              "SLURM_STEP_NUM_TASKS",
                              "SLURM_STEP_TASKS_PER_NODE"};

// What is read where these variables are set and none of the others.
Environment With(const std::vector<std::pair<const char*, const char*>>& variables) {
  for (const char* name : kNames) unsetenv(name);
  for (const auto& [name, value] : variables) setenv(name, value, 1);
  Environment out = ReadEnvironment();
  for (const char* name : kNames) unsetenv(name);
  return out;
}

TEST(ReadEnvironment, AProcessOfItsOwnIsItsHostsOnlyRank) {
  const Environment alone = With({});
  EXPECT_EQ(alone.rank, 0);
  EXPECT_EQ(alone.local_rank, 0);
  EXPECT_EQ(alone.local_ranks, 1);
}

TEST(ReadEnvironment, MpirunSaysWhichOfItsHostsRanksThisIs) {
  const Environment rank = With({{"OMPI_COMM_WORLD_SIZE", "8"},
                                 {"OMPI_COMM_WORLD_RANK", "6"},
                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "2"}});
  EXPECT_EQ(rank.rank, 6);
  EXPECT_EQ(rank.local_rank, 2);
  EXPECT_EQ(rank.local_ranks, 4);
}

TEST(ReadEnvironment, SrunSaysWhichOfItsNodesTasksThisIs) {
  const Environment rank = With({{"SLURM_JOB_ID", "7"},
                                 {"SLURM_STEP_ID", "0"},
                                 {"SLURM_STEP_NUM_TASKS", "3"},
                                 {"SLURM_STEP_TASKS_PER_NODE", "2,1"},
                                 {"SLURM_NODEID", "0"},
                                 {"SLURM_PROCID", "1"},
                                 {"SLURM_LOCALID", "1"}});
  EXPECT_EQ(rank.rank, 1);
  EXPECT_EQ(rank.local_rank, 1);
  EXPECT_EQ(rank.local_ranks, 2);
}

TEST(ReadEnvironment, MpirunsNumbersCountInsideASlurmJob) {
  // Slurm's are those of the daemon that mpirun has started on the node.
  const Environment rank = With({{"OMPI_COMM_WORLD_SIZE", "4"},
                                 {"OMPI_COMM_WORLD_RANK", "0"},
                                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                                 {"SLURM_JOB_ID", "7"},
                                 {"SLURM_STEP_ID", "0"},
                                 {"SLURM_PROCID", "1"},
                                 {"SLURM_LOCALID", "1"}});
  EXPECT_EQ(rank.rank, 0);
  EXPECT_EQ(rank.local_rank, 0);
  EXPECT_EQ(rank.local_ranks, 2);
}

TEST(ReadEnvironment, WhatIsNoNumberIsLeftOut) {
  const Environment rank = With({{"OMPI_COMM_WORLD_LOCAL_RANK", "x"}, {"SLURM_LOCALID", "3"}});
  EXPECT_EQ(rank.local_rank, 3);
}

}  // namespace
}  // namespace phalanx::launcher
