package inbox

import (
	"testing"

	"github.com/google/uuid"
)

func TestRecentForgetsTheOldest(t *testing.T) {
	ids := make([]uuid.UUID, 5)
	r := newRecent(3)
	for i := range ids {
		ids[i] = uuid.New()
		r.add(ids[i])
	}
	for i, want := range []bool{false, false, true, true, true} {
		if got := r.has(ids[i]); got != want {
			t.Errorf("has the id added as number %d of 5: %t, want %t", i+1, got, want)
		}
	}
	if len(r.ids) != 3 {
		t.Errorf("remembers %d ids, want 3", len(r.ids))
	}
}
