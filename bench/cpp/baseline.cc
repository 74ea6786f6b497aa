// The yardstick for the Python server: ext_proc on C++ gRPC's asynchronous completion queue, one thread.
//
// What it does for each request: parse Envoy's messages, parse the JSON body, run one RE2 regex over the last user
// message, set two headers and ask for the route to be picked again. `--noop` leaves out all but the messages.
// A generic service with byte buffers would be cheaper for gRPC but would make the comparison unfair to typed users, so
// messages are parsed by generated code, as a C++ author would. In duplex mode it hands the body back undecided: the
// decision is measured in BUFFERED mode only. The body of an answer is handed back as it came, without a look at it.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <re2/re2.h>

#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "ext_proc.pb.h"

namespace pb = pointsman::ext_proc::v1;
using grpc::ByteBuffer;

static bool noop = false;
static const RE2 code(R"((?i)\b(python|rust|compile|function|class)\b)");

static void Set(pb::CommonResponse* common, const char* key, const std::string& value) {
  auto* option = common->mutable_header_mutation()->add_set_headers();
  option->mutable_header()->set_key(key);
  option->mutable_header()->set_raw_value(value);
  option->set_append_action(pb::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
}

static void Decide(const std::string& body, pb::CommonResponse* common) {
  std::string text;
  auto parsed = nlohmann::json::parse(body, nullptr, false);
  if (parsed.is_object()) {
    auto messages = parsed.find("messages");
    if (messages != parsed.end() && messages->is_array()) {
      for (const auto& message : *messages) {
        auto content = message.find("content");
        if (content != message.end() && content->is_string()) text = content->get<std::string>();
      }
    }
  }
  const bool matched = RE2::PartialMatch(text, code);
  Set(common, "x-pointsman-model", matched ? "large" : "small");
  Set(common, "x-pointsman-decision", matched ? "code" : "default");
  common->set_clear_route_cache(true);
}

// One stream: read, answer, read, ... until the client half-closes.
class Call {
 public:
  Call(grpc::AsyncGenericService* service, grpc::ServerCompletionQueue* queue)
      : service_(service), queue_(queue), stream_(&context_) {
    service_->RequestCall(&context_, &stream_, queue_, queue_, this);
  }

  void Step(bool ok) {
    switch (state_) {
      case kAccept:
        if (!ok) {
          delete this;
          return;
        }
        new Call(service_, queue_);
        state_ = kRead;
        stream_.Read(&in_, this);
        return;
      case kRead:
        if (!ok) {
          state_ = kFinish;
          stream_.Finish(grpc::Status::OK, this);
          return;
        }
        state_ = kWrite;
        if (!Answer()) {
          state_ = kFinish;
          stream_.Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "not a ProcessingRequest"), this);
          return;
        }
        stream_.Write(out_, this);
        return;
      case kWrite:
        state_ = ok ? kRead : kFinish;
        if (ok) {
          stream_.Read(&in_, this);
        } else {
          stream_.Finish(grpc::Status::CANCELLED, this);
        }
        return;
      case kFinish:
        delete this;
        return;
    }
  }

 private:
  bool Answer() {
    pb::ProcessingRequest request;
    pb::ProcessingResponse response;
    if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, pb::ProcessingRequest>(&in_, &request).ok()) return false;
    if (request.has_request_headers()) {
      duplex_ = request.protocol_config().request_body_mode() == pb::ProcessingMode::FULL_DUPLEX_STREAMED;
      watches_ = request.protocol_config().response_body_mode() == pb::ProcessingMode::FULL_DUPLEX_STREAMED;
      response.mutable_request_headers();
    } else if (request.has_request_body()) {
      auto* common = response.mutable_request_body()->mutable_response();
      if (duplex_) {
        auto* streamed = common->mutable_body_mutation()->mutable_streamed_response();
        streamed->set_body(request.request_body().body());
        streamed->set_end_of_stream(request.request_body().end_of_stream());
      } else if (!noop) {
        Decide(request.request_body().body(), common);
      }
    } else if (request.has_response_headers()) {
      response.mutable_response_headers();
    } else if (request.has_response_body()) {
      auto* common = response.mutable_response_body()->mutable_response();
      if (watches_) {
        auto* streamed = common->mutable_body_mutation()->mutable_streamed_response();
        streamed->mutable_body()->swap(*request.mutable_response_body()->mutable_body());
        streamed->set_end_of_stream(request.response_body().end_of_stream());
      }
    } else if (request.has_response_trailers()) {
      response.mutable_response_trailers();
    } else {
      response.mutable_request_trailers();
    }
    bool own = false;
    out_.Clear();
    return grpc::GenericSerialize<grpc::ProtoBufferWriter, pb::ProcessingResponse>(response, &out_, &own).ok();
  }

  enum State { kAccept, kRead, kWrite, kFinish };
  grpc::AsyncGenericService* service_;
  grpc::ServerCompletionQueue* queue_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  ByteBuffer in_, out_;
  State state_ = kAccept;
  bool duplex_ = false, watches_ = false;
};

static std::unique_ptr<grpc::Server> server;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: baseline unix:PATH|host:port [--noop]\n";
    return 2;
  }
  noop = argc > 2 && !std::strcmp(argv[2], "--noop");
  grpc::AsyncGenericService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(argv[1], grpc::InsecureServerCredentials());
  builder.RegisterAsyncGenericService(&service);
  auto queue = builder.AddCompletionQueue();
  server = builder.BuildAndStart();
  if (!server) return 1;
  std::cout << argv[1] << std::endl;
  for (int i = 0; i < 64; ++i) new Call(&service, queue.get());
  void* tag;
  bool ok;
  while (queue->Next(&tag, &ok)) static_cast<Call*>(tag)->Step(ok);
}
