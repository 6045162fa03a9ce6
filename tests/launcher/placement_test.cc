#include "launcher/placement.h"

#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Hosts(const Placement& placement) { return ToHostList(placement.hosts); }

TEST(ParseHosts, ReadsHostsWithAndWithoutSlots) {
  const auto hosts = ParseHosts("a:2, b,c.example.org:16");
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_THAT(*hosts,
              ElementsAre(HostSlots{"a", 2}, HostSlots{"b", 1}, HostSlots{"c.example.org", 16}));
  EXPECT_EQ(ToHostList(*hosts), "a:2,b:1,c.example.org:16");
}

TEST(ParseHosts, NamesTheBadEntry) {
  for (const char* bad : {"a:0", "a:x", "a:", ":2", "", "a:-1", "a b"}) {
    const auto hosts = ParseHosts(absl::StrCat("ok,", bad));
    EXPECT_EQ(hosts.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(hosts.status().message()), HasSubstr(absl::StrCat("\"", bad, "\"")));
  }
}

TEST(ReadHostfile, ReadsSlotsAndLeavesTheRestToMpirun) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/hostfile");
  std::ofstream(path) << "# nodes\na slots=2 max_slots=4\n\n  b  # one\nc\tslots=3\nd slots = 2 "
                         "max_slots = 3\ne cpu=4\n";
  const auto hosts = ReadHostfile(path);
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_EQ(ToHostList(*hosts), "a:2,b:1,c:3,d:2,e:4");
  std::ofstream(path) << "a\nb slots=none\n";
  EXPECT_THAT(std::string(ReadHostfile(path).status().message()),
              HasSubstr(absl::StrCat(path, ":2: \"slots=none\"")));
  std::ofstream(path) << "a slot=2\n";
  EXPECT_THAT(std::string(ReadHostfile(path).status().message()),
              HasSubstr(absl::StrCat(path, ":1: \"slot=2\" is not slots=N")));
  std::remove(path.c_str());
  std::ofstream(path) << "# nobody\n";
  EXPECT_THAT(std::string(ReadHostfile(path).status().message()), HasSubstr("names no host"));
  std::remove(path.c_str());
  EXPECT_EQ(ReadHostfile(path).status().code(), absl::StatusCode::kNotFound);
}

TEST(PlaceReplicas, DividesHostsInOrder) {
  const auto placed = PlaceReplicas({{"a", 2}, {"b", 2}, {"c", 4}}, 4, 2);
  ASSERT_TRUE(placed.ok()) << placed.status();
  ASSERT_EQ(placed->size(), 4u);
  EXPECT_EQ(Hosts((*placed)[0]), "a:2");
  EXPECT_EQ(Hosts((*placed)[1]), "b:2");
  EXPECT_EQ(Hosts((*placed)[2]), "c:2");
  EXPECT_EQ(Hosts((*placed)[3]), "c:2");
  EXPECT_EQ((*placed)[0].ranks_per_host, 2);
  EXPECT_EQ((*placed)[2].ranks_per_host, 4);
}

TEST(PlaceReplicas, CountsTheRanksThatAHostHasBefore) {
  const auto placed = PlaceReplicas({{"a", 8}, {"b", 8}}, 3, 5);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_THAT((*placed)[0].hosts, ElementsAre(HostSlots{"a", 5, 0}));
  EXPECT_THAT((*placed)[1].hosts, ElementsAre(HostSlots{"a", 3, 5}, HostSlots{"b", 2, 0}));
  EXPECT_THAT((*placed)[2].hosts, ElementsAre(HostSlots{"b", 5, 2}));
}

TEST(PlaceReplicas, AReplicaMaySpanHostsAndCountsTheirBusiest) {
  const auto placed = PlaceReplicas({{"a", 3}, {"b", 3}}, 2, 3);
  ASSERT_TRUE(placed.ok());
  EXPECT_EQ(Hosts((*placed)[1]), "b:3");
  const auto uneven = PlaceReplicas({{"a", 3}, {"b", 1}, {"a", 2}}, 3, 2);
  ASSERT_TRUE(uneven.ok());
  EXPECT_EQ(Hosts((*uneven)[0]), "a:2");
  EXPECT_EQ(Hosts((*uneven)[1]), "a:1,b:1");
  EXPECT_EQ(Hosts((*uneven)[2]), "a:2");
  for (const Placement& placement : *uneven) EXPECT_EQ(placement.ranks_per_host, 5);
}

TEST(HostsToTry, AreHalvedFromTheThirdTryOnFirstAndLastInTurn) {
  const std::vector<HostSlots> hosts = {{"a", 2}, {"b", 2}, {"c", 2}, {"d", 2}};
  EXPECT_EQ(HostsToTry(hosts, 0), hosts);
  EXPECT_EQ(HostsToTry(hosts, 1), hosts);
  EXPECT_EQ(ToHostList(HostsToTry(hosts, 2)), "a:2,b:2");
  EXPECT_EQ(ToHostList(HostsToTry(hosts, 3)), "d:2");
  EXPECT_EQ(ToHostList(HostsToTry(hosts, 4)), "a:2");
  EXPECT_EQ(ToHostList(HostsToTry(hosts, 1001)), "d:2");
  EXPECT_EQ(ToHostList(HostsToTry({{"a", 1}}, 2)), "a:1");
  EXPECT_TRUE(HostsToTry({}, 2).empty());
}

TEST(PlaceReplicas, TooFewSlotsAreRefusedWithBothNumbers) {
  const auto placed = PlaceReplicas({{"a", 2}, {"b", 1}}, 2, 2);
  EXPECT_EQ(placed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(placed.status().message()),
              HasSubstr("3 slots, but 2 replicas of 2 ranks need 4"));
}

}  // namespace
}  // namespace phalanx::launcher
