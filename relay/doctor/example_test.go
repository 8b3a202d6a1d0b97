package doctor_test

import (
	"context"
	"log/slog"
	"os"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/doctor"
)

// A program looks before it starts its relay, and logs what is not well.
func ExampleRun() {
	config := relay.Config{Postgres: os.Getenv("DATABASE_URL"), NATS: "nats://localhost:4222"}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	report := doctor.Run(context.Background(), config, doctor.Options{})
	for _, f := range report.Findings {
		if f.Severity != doctor.OK {
			log.Warn("not well", slog.String("detail", f.Detail), slog.String("check", f.Check), slog.String("place", string(f.Place)), slog.String("remedy", f.Remedy))
		}
	}
	if err := report.Err(); err != nil {
		log.Error("the relay would not work, or not as it promises", slog.Any("error", err))
	}
}
