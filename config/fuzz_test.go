package config_test

import (
	"os"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

// FuzzLoad reads any file and any value of a variable. Nothing panics, every
// fault says where it is, and what loads is printed as something that loads
// again.
func FuzzLoad(f *testing.F) {
	sample, err := os.ReadFile("relay.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(named(string(sample)), "")
	f.Add("database_dsn = 'host=h'\n[relay]\nbatch_size = 1", "1s")
	f.Add("[[relay]]\nx = 1\n[relay.y]\nz = {a = {b = [1, {c = 2}]}}", "-1")
	f.Add("relay = {batch_size = 1, on_dead.x = 2}\n\"a.b\".c = 1979-05-27", "{topic}.{")
	f.Add("\"\\u0000\" = inf\n'' = nan\nadvisory_lock = -0b1", "\xff")
	fields := config.Fields()

	f.Fuzz(func(t *testing.T, file, value string) {
		env := make(map[string]string)
		for _, field := range fields {
			env[field.Env] = value
		}
		_, err := config.Load(sources(env, map[string]string{config.DefaultPath: file}))
		faults(t, err)

		cfg, err := loadFile(file)
		faults(t, err)
		if err != nil {
			return
		}
		clear(env)
		for _, field := range fields {
			env[field.Env] = field.Value(cfg)
		}
		env["OUTBOX_DATABASE_DSN"] = string(cfg.DatabaseDSN)
		env["OUTBOX_NATS_URL"] = string(cfg.NATS.URL)
		again, err := config.Load(sources(env, nil))
		if err != nil {
			t.Fatalf("what was loaded does not load again: %v", err)
		}
		cfg.HTTPAddrSet = true // it was, just now
		if again != cfg {
			t.Errorf("got  %+v\nwant %+v", again, cfg)
		}
	})
}
