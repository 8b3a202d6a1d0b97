package store_test

import (
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

func TestParseTable(t *testing.T) {
	long := strings.Repeat("x", 64)
	for text, want := range map[string]store.Table{
		"outbox":                    {Schema: "public", Name: "outbox"},
		"shop.Events":               {Schema: "shop", Name: "Events"},
		"Weird Name":                {Schema: "public", Name: "Weird Name"},
		long[:63] + "." + long[:48]: {Schema: long[:63], Name: long[:48]},
		"":                          {},
		".":                         {},
		"a.":                        {},
		".b":                        {},
		"a.b.c":                     {},
		" outbox":                   {},
		"shop. outbox":              {},
		"out\x00box":                {},
		"out\nbox":                  {},
		"\xff":                      {},
		long[:49]:                   {},
		long[:64] + ".t":            {},
	} {
		got, err := store.ParseTable(text)
		if (err == nil) != (want != store.Table{}) || err == nil && got != want {
			t.Errorf("ParseTable(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
}
