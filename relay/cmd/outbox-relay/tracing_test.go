package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/tracing"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// otlpServer is a stub of an OpenTelemetry collector.
type otlpServer struct {
	*httptest.Server

	mu    sync.Mutex // Protects what follows.
	spans map[string]*otlp.Span
}

func newOTLPServer(t *testing.T) *otlpServer {
	t.Helper()
	s := &otlpServer{spans: make(map[string]*otlp.Span)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request collector.ExportTraceServiceRequest
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			http.Error(w, "want spans", http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					s.spans[span.GetName()] = span
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *otlpServer) span(name string) *otlp.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spans[name]
}

// One trace leads from an HTTP request through the outbox and the relay to a consumer.
func TestOneTrace(t *testing.T) {
	dsn, server, stub := storetest.NewDatabase(t), streamtest.Start(t), newOTLPServer(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stub.URL) // The exporter asks the process.
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	sender, err := otlptracehttp.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	provider := trace.NewTracerProvider(trace.WithSyncer(sender))
	t.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	tracer := provider.Tracer("test")
	expectCode(t, execute(t, environment{"OUTBOX_DATABASE_DSN": dsn}, "migrate"), 0)

	conn := connect(t, dsn)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := tracer.Start(r.Context(), "POST /orders")
		defer span.End()
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			event := store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "17", EventType: "OrderPaid", Data: []byte("secret")}
			tracing.Inject(ctx, &event)
			return store.Insert(ctx, tx, event, store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "18", EventType: "Untraced"})
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	t.Cleanup(service.Close)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, service.URL+"/orders", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if _ = response.Body.Close(); response.StatusCode != http.StatusOK {
		t.Fatalf("the service answers %s", response.Status)
	}

	// The event waits until there is a relay.
	const wait = 300 * time.Millisecond
	time.Sleep(wait)
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": server.URL(), "OTEL_EXPORTER_OTLP_ENDPOINT": stub.URL})
	relay.logged("leading")

	js, err := jetstream.New(server.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(t.Context(), "OUTBOX", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"outbox.orders.Order.17"}})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := consumer.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	_, span := tracer.Start(tracing.Extract(t.Context(), msg.Headers()), "handle OrderPaid")
	span.End()

	var all [3]*otlp.Span
	eventually(t, "the spans are with the collector", func() bool {
		for i, name := range []string{"POST /orders", "outbox publish", "handle OrderPaid"} {
			all[i] = stub.span(name)
		}
		return all[0] != nil && all[1] != nil && all[2] != nil
	})
	for _, s := range all[1:] {
		if string(s.GetTraceId()) != string(all[0].GetTraceId()) {
			t.Errorf("span %q has the trace id %x, want %x", s.GetName(), s.GetTraceId(), all[0].GetTraceId())
		}
		if string(s.GetParentSpanId()) != string(all[0].GetSpanId()) {
			t.Errorf("span %q has the parent %x, want %x", s.GetName(), s.GetParentSpanId(), all[0].GetSpanId())
		}
	}
	if took := time.Duration(all[1].GetEndTimeUnixNano() - all[1].GetStartTimeUnixNano()); took < wait {
		t.Errorf("the span %q lasts %v, want %v or more", all[1].GetName(), took, wait)
	}
	relay.stop()
	if code := relay.wait(); code != 0 {
		t.Errorf("the relay's exit code is %d", code)
	}
}

func TestTracingIsRefused(t *testing.T) {
	for name, value := range map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} {
		got := execute(t, environment{
			"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_HTTP_ADDR": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", name: value,
		})
		expectCode(t, got, 2)
		expectText(t, "standard error", got.stderr, name)
	}
}
