package config_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

func TestRedact(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"embedded", "embedded"},

		// URLs as they should be.
		{"postgres://h:5432/d?sslmode=disable", "postgres://h:5432/d?sslmode=disable"},
		{"postgres://u@h/d", "postgres://u@h/d"},
		{"postgres://u:pw@h/d", "postgres://u:xxxxx@h/d"},
		{"postgres://u:@h/d", "postgres://u:xxxxx@h/d"},
		{"postgres:///d?host=/run", "postgres:///d?host=/run"},
		{"postgresql://u:pw@h1:1,h2:2/d", "postgresql://u:xxxxx@h1:1,h2:2/d"},
		{"postgres://u:pw@[::1]:5432/d", "postgres://u:xxxxx@[::1]:5432/d"},
		{"postgres://h/d?user=u&password=pw", "postgres://h/d?user=u&password=xxxxx"},
		{"postgres://h/d?pass%77ord=pw&ssl%6Dode=disable", "postgres://h/d?password=xxxxx&sslmode=disable"},
		{"postgres://h/d?oauth_client_secret=pw", "postgres://h/d?xxxxx"},
		{"postgres://h/d?password=p&w", "postgres://h/d?password=xxxxx&xxxxx"},
		{"nats://h:4222", "nats://h:4222"},
		{"nats://u:pw@h", "nats://xxxxx@h"},
		{"nats://token@h", "nats://xxxxx@h"},
		{"nats://token:@h", "nats://xxxxx@h"},
		{"nats://a,tls://u:pw@b, ws://token@c", "nats://a,tls://xxxxx@b,ws://xxxxx@c"},

		// URLs with a password that should have been encoded.
		{"postgres://u:p@w@h/d", "postgres://u:xxxxx@h/d"},
		{"postgres://u:p:w@h/d", "postgres://u:xxxxx@h/d"},
		{"postgres://u:12/w@h/d", "postgres://xxxxx"},
		{"postgres://u:12?w@h/d", "postgres://xxxxx"},
		{"postgres://u:12#w@h/d", "postgres://xxxxx"},
		{"postgres://u:12#w", "postgres://xxxxx"},
		{"postgres://u:%zz@h/d", "postgres://xxxxx"},
		{"postgres://u:pw", "postgres://xxxxx"},
		{"postgres://h/d?password=p@w", "postgres://xxxxx"},
		{"nats://u:1,w@h", "nats://xxxxx@h"},
		{"nats://u:pw@a,u:pw@b", "nats://xxxxx@b"},

		{"nats://pw,nats://@h", "nats://xxxxx"},
		{"nats://u:1,x://pw@h", "nats://xxxxx"},
		{"postgres://u:1,nats://pw@h", "postgres://xxxxx"},
		{"http://u:pw@h", "http://xxxxx"},

		// Keywords.
		{"host=h user=u password=pw dbname=d", "host=h user=u password=xxxxx dbname=d"},
		{"PASSWORD = 'p w' host = h", "PASSWORD=xxxxx host=h"},
		{`password='it\'s pw' host=h`, "password=xxxxx host=h"},
		{`password=p\ w host=h`, "password=xxxxx host=h"},
		{"password= pw host=h", "password=xxxxx host=h"},
		{"dbname=postgres://u:pw@h/d", "dbname=xxxxx"},
		{"host=h gss_secret=pw", "host=h xxxxx"},

		// Keywords with a password that should have been quoted.
		{"password=p w host=h", "xxxxx"},
		{"password='pw", "xxxxx"},
		{"password='p'w'", "xxxxx"},
		{"host=h password=p w=x", "host=h password=xxxxx xxxxx"},

		// Neither.
		{"localhost:4222", "localhost:4222"},
		{"a:1, b:2", "a:1, b:2"},
		{"hunter2", "xxxxx"},
		{"u:pw@h", "xxxxx"},
		{" postgres://u:pw@h/d?sslmode=disable", "xxxxx"},
	}
	for _, tt := range tests {
		if got := config.Redact(tt.in); got != tt.want {
			t.Errorf("Redact(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzRedact puts a password with anything around it where a password may
// stand, encoded or not, and looks for it in what is shown: by Redact, and in
// the faults of a configuration that has it.
//
// Encoded, no part of it may show. As it is, "x host=hunter2" cannot be told
// from a password and a host; then it must not show whole.
func FuzzRedact(f *testing.F) {
	const core = "hunter2hunter2"
	for _, around := range []string{
		"", " ", "@", "/", "?", "#", ":", ",", "=", "&", "%", "%zz", "'", `\`, "',dbname=x", "?password=", ",nats://", "1,x://", "x://a:1@", "\x00", "\xff",
	} {
		f.Add(around, "")
		f.Add("", around)
		f.Add(around, around)
	}
	templates := []string{
		"postgres://u:%s@h:5432/d?sslmode=disable",
		"postgres://h/d?password=%s&user=u",
		"host=h password=%s dbname=d",
		"host=h password='%s' dbname=d",
		"nats://u:%s@h:4222",
		"nats://%s@h:4222",
		"nats://a:4222,nats://u:%s@b:4222",
	}

	f.Fuzz(func(t *testing.T, before, after string) {
		password := before + core + after
		for _, template := range templates {
			for written, hidden := range map[string]string{
				password:                  password,
				url.QueryEscape(password): core,
			} {
				s := strings.Replace(template, "%s", written, 1)
				_, err := config.Load(sources(map[string]string{"OUTBOX_DATABASE_DSN": s, "OUTBOX_NATS_URL": s}, nil))
				for _, text := range []string{config.Redact(s), fmt.Sprint(err)} {
					if strings.Contains(text, hidden) {
						t.Errorf("%q is shown as %q", s, text)
					}
				}
			}
		}
	})
}
