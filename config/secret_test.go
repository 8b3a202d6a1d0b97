package config_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

// FuzzSecrets puts a password with anything around it where a password may be, encoded or not, and looks for it in what is
// shown of a configuration that has it: the values of the settings or, if it does not load, the faults.
//
// Encoded, no part of the password may show. As it is, "x host=hunter2" cannot be told from a password and a host; then it
// must not show whole.
func FuzzSecrets(f *testing.F) {
	const core = "hunter2hunter2"
	for _, around := range []string{
		"", " ", "@", "/", "?", "#", ":", ",", "=", "&", "%", "%zz", "'", `\`, "',dbname=x", "?password=", ",nats://", "1,x://", "x://a:1@", "\x00", "\xff",
	} {
		f.Add(around, "")
		f.Add("", around)
		f.Add(around, around)
	}
	templates := map[string]string{
		"postgres://u:%s@h:5432/d?sslmode=disable": "OUTBOX_DATABASE_DSN",
		"postgres://h/d?password=%s&user=u":        "OUTBOX_DATABASE_DSN",
		"host=h password=%s dbname=d":              "OUTBOX_DATABASE_DSN",
		"host=h password='%s' dbname=d":            "OUTBOX_DATABASE_DSN",
		"nats://u:%s@h:4222":                       "OUTBOX_NATS_URL",
		"nats://%s@h:4222":                         "OUTBOX_NATS_URL",
		"nats://a:4222,nats://u:%s@b:4222":         "OUTBOX_NATS_URL",
	}
	fields := config.Fields()

	f.Fuzz(func(t *testing.T, before, after string) {
		password := before + core + after
		for template, variable := range templates {
			for written, hidden := range map[string]string{
				password:                  password,
				url.QueryEscape(password): core,
			} {
				s := strings.Replace(template, "%s", written, 1)
				for _, name := range []string{"OUTBOX_DATABASE_DSN", "OUTBOX_NATS_URL"} { // The right one, and the wrong one.
					env := map[string]string{"OUTBOX_DATABASE_DSN": dsn}
					env[name] = s
					c, err := config.Load(sources(env, nil))
					shown := fmt.Sprint(err)
					for _, field := range fields {
						shown += "\n" + field.Value(c)
					}
					if strings.Contains(shown, hidden) {
						t.Errorf("%s=%q is shown: %s", name, s, shown)
					}
					if name == variable && err != nil && written != password && strings.ToValidUTF8(password, "") == password && !strings.Contains(password, "\x00") && !strings.ContainsAny(written, "+,=") {
						t.Errorf("%q does not load: %v", s, err)
					}
				}
			}
		}
	})
}
