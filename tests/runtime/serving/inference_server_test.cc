// The service over loopback, with a real coordinator and a fake group of ranks.
#include "runtime/serving/inference_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/phalanx/v1/inference.grpc.pb.h"
#include "runtime/serving/text_decoder.h"
#include "tests/runtime/serving/byte_tokenizer.h"
#include "tests/testing/fake_worker_group.h"

namespace phalanx::serving {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Answer {
  grpc::Status status;
  std::vector<v1::GenerateResponse> messages;
  // Of sample 0.
  std::string text;
  std::vector<int32_t> ids;
};

class InferenceServerTest : public ::testing::Test {
 protected:
  static constexpr int kVocab = 200;
  static constexpr int kEos = 199;
  static constexpr int kContext = 1500;

  void Listen() {
    options_.listen = "127.0.0.1:0";
    options_.version = "1.0";
    options_.model = "demo";
    options_.layout = "tp=2";
    options_.loading_message = [] { return "1 of 2 GB"; };
    auto server = InferenceServer::Listen(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(),
                                         arguments);
    stub_ = v1::Inference::NewStub(channel_);
  }

  void Serve(bool manual = false) {
    testing::FakeGroupOptions group;
    group.kv_blocks = 4096;
    group.vocab_size = kVocab;
    group.manual = manual;
    ranks_ = std::make_shared<testing::FakeGroupControl>(group);
    coordinator::CoordinatorOptions options;
    options.limits.vocab_size = kVocab;
    options.limits.max_context = kContext;
    options.eos_token_ids = {kEos};
    options.scheduler.max_queued_requests = max_queued_;
    options.scheduler.max_batch_sequences = max_batch_sequences_;
    options.text_decoder = MakeTextDecoderFactory(tokenizer_);
    coordinator_ = std::make_unique<coordinator::Coordinator>(
        std::move(options), std::make_unique<testing::FakeWorkerGroup>(ranks_));
    const absl::Status started = coordinator_->Start();
    ASSERT_TRUE(started.ok()) << started;
    ServedModel model;
    model.coordinator = coordinator_.get();
    model.tokenizer = &tokenizer_;
    model.info.name = "fake";
    model.info.family = "llama";
    model.info.context_length = kContext;
    model.info.vocab_size = kVocab;
    model.info.eos_token_ids = {kEos};
    model.info.profile = "exact";
    model.info.profile_digest = "d1";
    model.info.max_prompt_bytes = 4096;
    model.rank_health = [] {
      return std::vector<control::RankHealth>{{0, 5, 17, absl::ZeroDuration()}};
    };
    server_->Serve(std::move(model));
  }

  void SetUp() override { Listen(); }
  void TearDown() override {
    server_.reset();  // before what it serves
    coordinator_.reset();
    if (ranks_ != nullptr) {
      EXPECT_EQ(ranks_->error(), "");
    }
  }

  static v1::GenerateRequest Request(int32_t first_id, int64_t max_tokens) {
    v1::GenerateRequest request;
    for (int i = 0; i < 10; ++i) request.mutable_token_ids()->add_ids(first_id + i);
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    request.mutable_sampling()->set_seed(11);
    return request;
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Read(stub_->Generate(&context, request).get());
  }

  static Answer Read(grpc::ClientReader<v1::GenerateResponse>* reader) {
    Answer answer;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (message.has_delta() && message.delta().index() == 0) {
        answer.text += message.delta().text();
        answer.ids.insert(answer.ids.end(), message.delta().token_ids().begin(),
                          message.delta().token_ids().end());
      }
      answer.messages.push_back(message);
    }
    answer.status = reader->Finish();
    return answer;
  }

  // grpc.health.v1.Health.Check with messages of the same shape: a string in field 1; an enum in
  // field 1, where 1 is SERVING and 2 NOT_SERVING.
  int Health(const std::string& service) {
    v1::GetModelRequest request;
    request.set_model(service);
    v1::GetStatusResponse response;
    grpc::ClientContext context;
    const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                           grpc::internal::RpcMethod::NORMAL_RPC, channel_);
    const grpc::Status status =
        grpc::internal::BlockingUnaryCall<v1::GetModelRequest, v1::GetStatusResponse,
                                          google::protobuf::MessageLite,
                                          google::protobuf::MessageLite>(
            channel_.get(), method, &context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return static_cast<int>(response.state());
  }

  v1::GetStatusResponse Status() {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    EXPECT_TRUE(stub_->GetStatus(&context, v1::GetStatusRequest(), &response).ok());
    return response;
  }

  void AwaitIdle() {
    while (true) {
      const v1::EngineStatus engine = Status().engine();
      if (engine.running_requests() + engine.queued_requests() == 0 &&
          engine.kv_blocks_in_use() == 0) {
        return;
      }
      std::this_thread::yield();
    }
  }

  // Requests have ended; the step in flight may still hold blocks.
  void AwaitNoRequests() {
    while (Status().engine().running_requests() + Status().engine().queued_requests() != 0) {
      std::this_thread::yield();
    }
  }

  void ExpectServing() {
    const Answer answer = Generate(Request(0, 3));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.ids.size(), 3u);
  }

  InferenceServerOptions options_;
  int64_t max_queued_ = 1024;
  int64_t max_batch_sequences_ = 64;
  ByteTokenizer tokenizer_;
  std::shared_ptr<testing::FakeGroupControl> ranks_;
  std::unique_ptr<coordinator::Coordinator> coordinator_;
  std::unique_ptr<InferenceServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(InferenceServerTest, WhileLoadingEverythingButStatusIsUnavailable) {
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Health("phalanx.v1.Inference"), 2);
  const Answer answer = Generate(Request(0, 3));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("loading"));
  EXPECT_EQ(Status().state(), v1::SERVER_STATE_LOADING);
  EXPECT_EQ(Status().status_message(), "1 of 2 GB");
  EXPECT_EQ(Status().model(), "demo");
  EXPECT_EQ(Status().layout(), "tp=2");
  Serve();
  EXPECT_EQ(Status().status_message(), "");
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("phalanx.v1.Inference"), 1);
  ExpectServing();
}

TEST_F(InferenceServerTest, AStreamHasTheDocumentedOrder) {
  Serve();
  v1::GenerateRequest request = Request(20, 4);
  request.set_request_id("mine");
  request.mutable_sampling()->set_logprobs(0);
  request.mutable_sampling()->set_prompt_logprobs(0);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_EQ(answer.messages.size(), 8u);

  const v1::Started& started = answer.messages[0].started();
  EXPECT_EQ(started.request_id(), "mine");
  EXPECT_EQ(started.model(), "fake");
  EXPECT_EQ(started.prompt_token_ids_size(), 10);
  EXPECT_EQ(started.seed(), 11u);
  EXPECT_EQ(started.layout(), "tp=1");
  EXPECT_EQ(started.profile().digest(), "d1");

  const v1::PromptLogprobs& prompt = answer.messages[1].prompt_logprobs();
  EXPECT_EQ(prompt.start(), 1);
  ASSERT_EQ(prompt.tokens_size(), 9);
  EXPECT_EQ(prompt.tokens(0).id(), 21);

  for (int i = 2; i < 6; ++i) {
    const v1::Delta& delta = answer.messages[i].delta();
    ASSERT_EQ(delta.token_ids_size(), 1);
    ASSERT_EQ(delta.logprobs_size(), 1);
    EXPECT_EQ(delta.logprobs(0).id(), delta.token_ids(0));
    EXPECT_EQ(delta.text(), std::string(1, ByteTokenizer::Letter(delta.token_ids(0))));
  }
  const v1::Finished& finished = answer.messages[6].finished();
  EXPECT_EQ(finished.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finished.num_tokens(), 4);
  const v1::Usage& usage = answer.messages[7].summary().usage();
  EXPECT_EQ(usage.prompt_tokens(), 10);
  EXPECT_EQ(usage.completion_tokens(), 4);
}

TEST_F(InferenceServerTest, LongPromptLogprobsComeInSeveralMessages) {
  Serve();
  v1::GenerateRequest request = Request(0, 1);
  for (int i = 10; i < 600; ++i) request.mutable_token_ids()->add_ids(i % kVocab);
  request.mutable_sampling()->set_prompt_logprobs(0);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  int next = 1;
  for (const v1::GenerateResponse& message : answer.messages) {
    if (!message.has_prompt_logprobs()) continue;
    EXPECT_EQ(message.prompt_logprobs().start(), next);
    for (const v1::TokenLogprobs& token : message.prompt_logprobs().tokens()) {
      EXPECT_EQ(token.id(), next++ % kVocab);
    }
  }
  EXPECT_EQ(next, 600);
}

TEST_F(InferenceServerTest, EverySampleFinishesOnce) {
  Serve();
  v1::GenerateRequest request = Request(0, 5);
  request.mutable_sampling()->set_n(3);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  std::vector<int> tokens(3), finished(3);
  for (const v1::GenerateResponse& message : answer.messages) {
    if (message.has_delta()) tokens[message.delta().index()] += message.delta().token_ids_size();
    if (message.has_finished()) ++finished[message.finished().index()];
  }
  EXPECT_THAT(tokens, ElementsAre(5, 5, 5));
  EXPECT_THAT(finished, ElementsAre(1, 1, 1));
}

TEST_F(InferenceServerTest, AStopStringEndsTheTextBeforeItAndIsNamed) {
  Serve();
  const Answer whole = Generate(Request(0, 20));
  v1::GenerateRequest request = Request(0, 20);
  const std::string stop = whole.text.substr(7, 3);
  request.mutable_sampling()->add_stop(stop);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, whole.text.substr(0, whole.text.find(stop)));
  const v1::Finished& finished = answer.messages[answer.messages.size() - 2].finished();
  EXPECT_EQ(finished.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(finished.stop_string(), stop);
}

TEST_F(InferenceServerTest, AStopIdIsNamed) {
  Serve();
  const Answer whole = Generate(Request(0, 20));
  v1::GenerateRequest request = Request(0, 20);
  request.mutable_sampling()->add_stop_token_ids(whole.ids[4]);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.ids.back(), whole.ids[4]);
  EXPECT_EQ(answer.messages[answer.messages.size() - 2].finished().stop_token_id(), whole.ids[4]);
}

TEST_F(InferenceServerTest, ADrawnSeedIsReturnedAndRepeatsTheAnswer) {
  Serve();
  v1::GenerateRequest request = Request(0, 8);
  request.mutable_sampling()->clear_seed();
  const Answer first = Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  request.mutable_sampling()->set_seed(first.messages[0].started().seed());
  EXPECT_EQ(Generate(request).ids, first.ids);
}

TEST_F(InferenceServerTest, BadParametersAreInvalidArgumentNamingTheField) {
  Serve();
  using Change = std::function<void(v1::GenerateRequest*)>;
  const auto sampling = [](auto set) {
    return [set](v1::GenerateRequest* r) { set(r->mutable_sampling()); };
  };
  using S = v1::SamplingParams*;
  const std::vector<std::pair<std::string, Change>> cases = {
      {"sampling.temperature", sampling([](S s) { s->set_temperature(std::nanf("")); })},
      {"sampling.temperature", sampling([](S s) { s->set_temperature(-1); })},
      {"sampling.top_p", sampling([](S s) { s->set_top_p(0); })},
      {"sampling.top_k", sampling([](S s) { s->set_top_k(-1); })},
      {"sampling.min_p", sampling([](S s) { s->set_min_p(1.5f); })},
      {"sampling.repetition_penalty", sampling([](S s) { s->set_repetition_penalty(0); })},
      {"sampling.frequency_penalty", sampling([](S s) { s->set_frequency_penalty(3); })},
      {"sampling.presence_penalty", sampling([](S s) { s->set_presence_penalty(-3); })},
      {"sampling.max_tokens", sampling([](S s) { s->set_max_tokens(-1); })},
      {"sampling.max_tokens", sampling([](S s) { s->set_max_tokens(0); })},
      {"sampling.max_tokens", sampling([](S s) { s->set_max_tokens(2147483648); })},
      {"sampling.min_tokens", sampling([](S s) { s->set_min_tokens(-1); })},
      {"sampling.n", sampling([](S s) { s->set_n(0); })},
      {"sampling.n", sampling([](S s) { s->set_n(1000000); })},
      {"sampling.logprobs", sampling([](S s) { s->set_logprobs(-1); })},
      {"sampling.logprobs", sampling([](S s) { s->set_logprobs(100000); })},
      {"sampling.prompt_logprobs", sampling([](S s) { s->set_prompt_logprobs(-2); })},
      {"sampling.stop", sampling([](S s) { s->add_stop(""); })},
      {"sampling.stop", sampling([](S s) { s->add_stop("\xff"); })},
      {"sampling.stop_token_ids", sampling([](S s) { s->add_stop_token_ids(kVocab); })},
      {"sampling.logit_bias", sampling([](S s) { (*s->mutable_logit_bias())[-1] = 1; })},
      {"prompt", [](v1::GenerateRequest* r) { r->clear_prompt(); }},
      {"token_ids", [](v1::GenerateRequest* r) { r->mutable_token_ids()->clear_ids(); }},
      {"token_ids", [](v1::GenerateRequest* r) { r->mutable_token_ids()->add_ids(kVocab); }},
      {"token_ids", [](v1::GenerateRequest* r) { r->mutable_token_ids()->add_ids(-1); }},
      {"token_ids",
       [](v1::GenerateRequest* r) {
         for (int i = 0; i < kContext; ++i) r->mutable_token_ids()->add_ids(1);
       }},
      {"text", [](v1::GenerateRequest* r) { r->set_text(""); }},
      {"text", [](v1::GenerateRequest* r) { r->set_text("ab\xc3("); }},
      {"text", [](v1::GenerateRequest* r) { r->set_text(std::string(2000, 'a')); }},
      {"request_id", [](v1::GenerateRequest* r) { r->set_request_id(std::string(257, 'x')); }},
      {"cache_salt", [](v1::GenerateRequest* r) { r->set_cache_salt(std::string(257, 'x')); }},
  };
  for (const auto& [field, change] : cases) {
    v1::GenerateRequest request = Request(0, 3);
    change(&request);
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_THAT(answer.status.error_message(), StartsWith(field + ":"));
    EXPECT_TRUE(answer.messages.empty()) << field;
  }
  ExpectServing();
}

TEST_F(InferenceServerTest, AnUnknownModelIsNotFoundByEveryMethod) {
  Serve();
  v1::GenerateRequest request = Request(0, 3);
  request.set_model("other");
  const Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(answer.status.error_message(),
              ::testing::AllOf(HasSubstr("other"), HasSubstr("fake")));
  {
    grpc::ClientContext context;
    v1::TokenizeRequest tokenize;
    tokenize.set_model("other");
    v1::TokenizeResponse response;
    EXPECT_EQ(stub_->Tokenize(&context, tokenize, &response).error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
  {
    grpc::ClientContext context;
    v1::GetModelRequest get;
    get.set_model("other");
    v1::GetModelResponse response;
    EXPECT_EQ(stub_->GetModel(&context, get, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  }
}

TEST_F(InferenceServerTest, AHugePromptIsRefusedAndHarmsNobody) {
  Serve();
  v1::GenerateRequest request;
  request.set_text(std::string(100'000'000, 'a'));
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), StartsWith("text: 100000000 bytes"));
  request.mutable_text()->append(std::string(40'000'000, 'a'));
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectServing();
}

TEST_F(InferenceServerTest, ALiveRequestIdAlreadyExists) {
  Serve(/*manual=*/true);
  v1::GenerateRequest request = Request(0, 1);
  request.set_request_id("twin");
  grpc::ClientContext context;
  auto first = stub_->Generate(&context, request);
  ranks_->AwaitPlan();
  const Answer second = Generate(request);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(second.status.error_message(), HasSubstr("twin"));
  ranks_->RunOne();
  EXPECT_TRUE(Read(first.get()).status.ok());
  // The id is free again.
  grpc::ClientContext again;
  auto third = stub_->Generate(&again, request);
  ranks_->RunOne();
  EXPECT_TRUE(Read(third.get()).status.ok());
}

TEST_F(InferenceServerTest, AFullQueueIsResourceExhausted) {
  max_queued_ = 1;
  max_batch_sequences_ = 1;
  Serve(/*manual=*/true);
  grpc::ClientContext running_context, waiting_context;
  auto running = stub_->Generate(&running_context, Request(0, 1));
  ranks_->AwaitPlan();
  auto waiting = stub_->Generate(&waiting_context, Request(50, 1));
  while (Status().engine().queued_requests() != 1) std::this_thread::yield();
  EXPECT_EQ(Generate(Request(100, 1)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ranks_->RunOne();
  ranks_->RunOne();
  EXPECT_TRUE(Read(running.get()).status.ok());
  EXPECT_TRUE(Read(waiting.get()).status.ok());
}

TEST_F(InferenceServerTest, AClientsDeadlineEndsTheRequest) {
  Serve(/*manual=*/true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  auto reader = stub_->Generate(&context, Request(0, 100));
  EXPECT_EQ(Read(reader.get()).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  AwaitNoRequests();
  ranks_->RunOne();  // the step in flight is the last
  AwaitIdle();
}

TEST_F(InferenceServerTest, AClientThatCancelsFreesItsBlocks) {
  Serve();
  for (int i = 0; i < 8; ++i) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, Request(i, 1400));
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    context.TryCancel();
    EXPECT_EQ(Read(reader.get()).status.error_code(), grpc::StatusCode::CANCELLED);
  }
  AwaitIdle();
  ExpectServing();
}

TEST_F(InferenceServerTest, AClientThatDropsItsConnectionFreesItsBlocks) {
  Serve(/*manual=*/true);
  {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
        server_->address(), grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, Request(0, 1400));
    ranks_->AwaitPlan();
    EXPECT_EQ(Status().engine().running_requests(), 1);
  }
  AwaitNoRequests();
  ranks_->RunOne();  // the step in flight is the last
  AwaitIdle();
}

TEST_F(InferenceServerTest, AClientThatNeverReadsLosesItsAnswerAndIsToldSo) {
  server_.reset();
  std::mutex mutex;
  std::string log;
  options_.log = [&](const std::string& line) {
    std::lock_guard<std::mutex> lock(mutex);
    log += line;
  };
  options_.max_unread_bytes = 50'000;
  Listen();
  Serve();
  v1::GenerateRequest request = Request(0, 1200);
  request.mutable_sampling()->set_n(32);
  // A client that takes little on trust; gRPC's default buffers more than the answer's bytes.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 14);
  auto stub = v1::Inference::NewStub(
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  AwaitIdle();
  const Answer answer = Read(reader.get());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(),
              HasSubstr("more than 50000 bytes of this answer unread"));
  {
    std::lock_guard<std::mutex> lock(mutex);
    EXPECT_THAT(log, HasSubstr("more than 50000 bytes"));
  }
  ExpectServing();
}

TEST_F(InferenceServerTest, SixtyFourClientsGetTheAnswersTheyGetAlone) {
  Serve();
  constexpr int kClients = 64;
  std::vector<Answer> alone(kClients), together(kClients);
  for (int i = 0; i < kClients; ++i) alone[i] = Generate(Request(i, 20 + i % 7));
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] { together[i] = Generate(Request(i, 20 + i % 7)); });
  }
  for (std::thread& client : clients) client.join();
  for (int i = 0; i < kClients; ++i) {
    ASSERT_TRUE(together[i].status.ok()) << together[i].status.error_message();
    EXPECT_EQ(together[i].ids, alone[i].ids);
    EXPECT_EQ(together[i].text, alone[i].text);
  }
  AwaitIdle();
}

TEST_F(InferenceServerTest, DrainingFinishesWhatRunsAndTakesNothingNew) {
  Serve(/*manual=*/true);
  grpc::ClientContext context;
  auto running = stub_->Generate(&context, Request(0, 2));
  ranks_->AwaitPlan();
  server_->BeginDrain();
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Status().state(), v1::SERVER_STATE_DRAINING);
  const Answer late = Generate(Request(0, 1));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(late.status.error_message(), HasSubstr("draining"));
  ranks_->RunOne();
  ranks_->RunOne();
  EXPECT_TRUE(Read(running.get()).status.ok());
}

TEST_F(InferenceServerTest, LostWorkersAreUnavailableAndHealthFollows) {
  Serve(/*manual=*/true);
  grpc::ClientContext context;
  auto running = stub_->Generate(&context, Request(0, 2));
  ranks_->AwaitPlan();
  ranks_->Die(absl::UnavailableError("lost rank 1 (host h, pid 3) at step 1"));
  const Answer answer = Read(running.get());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("lost rank 1 (host h, pid 3)"));
  EXPECT_EQ(Generate(Request(0, 1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Status().state(), v1::SERVER_STATE_FAILED);
  while (Health("") != 2) std::this_thread::yield();
}

TEST_F(InferenceServerTest, ShutdownCancelsWhatStillRuns) {
  Serve(/*manual=*/true);
  grpc::ClientContext context;
  auto running = stub_->Generate(&context, Request(0, 2));
  ranks_->AwaitPlan();
  server_->Shutdown(absl::ZeroDuration());
  EXPECT_FALSE(Read(running.get()).status.ok());
  server_->Shutdown(absl::ZeroDuration());
}

TEST_F(InferenceServerTest, TokenizeAndDetokenize) {
  Serve();
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("hi");
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_THAT(response.token_ids(), ElementsAre(ByteTokenizer::kBos, 'h', 'i'));
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("\xff");
    v1::TokenizeResponse response;
    const grpc::Status status = stub_->Tokenize(&context, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(), "text: is not valid UTF-8 at byte 0");
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_token_ids(0);
    request.add_token_ids(27);
    v1::DetokenizeResponse response;
    ASSERT_TRUE(stub_->Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "ab");
    request.add_token_ids(kVocab);
    grpc::ClientContext again;
    const grpc::Status status = stub_->Detokenize(&again, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), StartsWith("token_ids: entry 2 is token id 200"));
  }
}

TEST_F(InferenceServerTest, ModelAndStatusSayWhatIsServed) {
  Serve();
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(stub_->GetModel(&context, v1::GetModelRequest(), &model).ok());
  EXPECT_EQ(model.name(), "fake");
  EXPECT_EQ(model.context_length(), kContext);
  EXPECT_THAT(model.eos_token_ids(), ElementsAre(kEos));
  EXPECT_TRUE(model.default_sampling().has_temperature());
  EXPECT_EQ(model.default_sampling().temperature(), 0.0f);

  ExpectServing();
  AwaitIdle();
  const v1::GetStatusResponse status = Status();
  EXPECT_EQ(status.state(), v1::SERVER_STATE_SERVING);
  EXPECT_EQ(status.version(), "1.0");
  EXPECT_EQ(status.layout(), "tp=1");
  ASSERT_EQ(status.ranks_size(), 1);
  EXPECT_EQ(status.ranks(0).host(), "fake");
  EXPECT_EQ(status.ranks(0).last_collective(), 17u);
  EXPECT_EQ(status.engine().kv_blocks_total(), 4096);
  EXPECT_EQ(status.engine().finished_requests(), 1);
  EXPECT_EQ(status.engine().generated_tokens(), 3);
}

TEST_F(InferenceServerTest, APortInUseIsNamed) {
  InferenceServerOptions options;
  options.listen = server_->address();
  const absl::Status status = InferenceServer::Listen(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(server_->address()));
}

}  // namespace
}  // namespace phalanx::serving
