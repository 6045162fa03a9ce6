#include "parallel/mesh.h"

#include <set>

#include "gtest/gtest.h"

namespace phalanx::parallel {
namespace {

TEST(Layout, ParsesAxesInAnyOrderAndPrintsThemBack) {
  const absl::StatusOr<Layout> layout = ParseLayout("pp=2, tp=3,dp=4");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->tp, 3);
  EXPECT_EQ(layout->pp, 2);
  EXPECT_EQ(layout->sp, 1);
  EXPECT_EQ(layout->group_size(), 6);
  EXPECT_EQ(layout->world_size(), 24);
  EXPECT_EQ(*ParseLayout(layout->ToString()), *layout);
  EXPECT_EQ(Layout{}.ToString(), "tp=1");
}

TEST(Layout, RefusesWhatIsNotALayoutByName) {
  for (const char* bad :
       {"", "tp", "tp=", "tp=0", "tp=-1", "tp=x", "tp=2,tp=2", "zp=2", "tp=70000", "tp=2,", "=2"}) {
    EXPECT_EQ(ParseLayout(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_NE(ParseLayout("zp=2").status().message().find("\"zp\""), std::string::npos);
}

TEST(Layout, HasABoundedNumberOfRanks) {
  EXPECT_TRUE(ParseLayout("dp=65536").ok());
  EXPECT_TRUE(ParseLayout("dp=256,tp=256").ok());
  for (const char* bad :
       {"dp=65536,tp=2", "dp=32768,pp=3", "dp=65536,pp=65536,sp=65536,tp=65536"}) {
    const absl::StatusOr<Layout> layout = ParseLayout(bad);
    EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(layout.status().message().find("more than 65536 ranks"), std::string::npos) << bad;
  }
}

TEST(Mesh, RanksAndCoordinatesAreInverseWithTpFastest) {
  const Mesh mesh(*ParseLayout("pp=3,sp=2,tp=4"));
  std::set<int> ranks;
  for (int r = 0; r < mesh.size(); ++r) {
    const MeshCoordinates at = mesh.coordinates(r);
    EXPECT_EQ(mesh.rank(at), r);
    ranks.insert(r);
  }
  EXPECT_EQ(mesh.coordinates(1).t, 1);
  EXPECT_EQ(mesh.coordinates(4).s, 1);
  EXPECT_EQ(mesh.coordinates(8).p, 1);
}

}  // namespace
}  // namespace phalanx::parallel
