package relay

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/go-outbox/go-outbox/store"
)

// partOfState is a struct that a state of the exploration consists of. Each of its fields is copied with the state, shares
// no memory with the copy, and is encoded with it, unless a reason says why it need not. Missing from the copy, a field has
// one path of the exploration change another; missing from the encoding, two states are taken for one and the second is
// never gone on from. Either makes the explorer blind, and no other test would tell.
type partOfState struct {
	of func(w *world) any // Returns a pointer to the struct.

	notEncoded map[string]string // Field: why two states may differ in it.
	notCopied  map[string]string // Field: why a copy is without it.
	shared     map[string]string // Field: why the copy may have the same memory.
}

const (
	constant = "it does not change in a scenario"
	noClock  = "the clock stands still, and what waits for a time may go on at any moment"
	noKept   = "the database keeps no row, and every row can be published but for the one that the broker refuses"
	inStep   = "it is empty between two steps"
	replaced = "it is replaced, never changed in place"
	telling  = "it is for the log"
)

// partsOfState returns all of them, by the name of the type.
func partsOfState() map[string]partOfState {
	core := func(w *world) *core { return w.candidates[0].term.core }
	return map[string]partOfState{
		"world": {
			of: func(w *world) any { return w },
			notEncoded: map[string]string{
				"scenario": constant, "stamp": "only whether stamps are the same counts, which is encoded where they are compared",
				"story": telling, "wrong": "the exploration ends with it",
			},
			shared: map[string]string{"scenario": constant, "story": telling},
		},
		"tableRow": {
			of:         func(w *world) any { return &w.rows[0] },
			notEncoded: map[string]string{"after": "it counts for archived rows only, and is encoded for them"},
		},
		"message": {
			of:         func(w *world) any { return &w.messages[0] },
			notEncoded: map[string]string{"stamp": "see world"},
		},
		"stray": {of: func(w *world) any { return &w.strays[0] }},
		"orderedBatch": {
			of:         func(w *world) any { return w.candidates[0].ordered },
			notEncoded: map[string]string{"stray": "a candidate's ordered batch is none, and one in world.strays always is"},
		},
		"candidate": {
			of: func(w *world) any { return w.candidates[0] },
			notEncoded: map[string]string{
				"request": "it is that of term.core.trip", "mark": "it is compared with the stream's, and that is encoded with detector.state",
			},
			shared: map[string]string{"request": replaced, "trouble": replaced},
		},
		"glance": {
			of: func(w *world) any { return &w.candidates[0].looks[0] },
			notEncoded: map[string]string{
				"mark": "whether it is that of the message now in its place is encoded, once the look is over",
			},
		},
		"readingBack": {
			of:         func(w *world) any { return w.candidates[0].recovery },
			notEncoded: map[string]string{"acked": "it is term.detector.acked", "at": inStep, "next": "it follows from the answers"},
			shared:     map[string]string{"answers": "none is changed, and what is added to a copy goes elsewhere: see slices.Clip"},
		},
		"answer": {
			of: func(w *world) any { return &w.candidates[0].recovery.answers[0] },
			notEncoded: map[string]string{
				"kind": "it follows from the answers before", "refs": "they follow from the answers before",
				"lost": "they follow from the answers before", "checkpoint": "it follows from the answers before",
				"err": "an answer with an error is the last one, and the recovery is over with it",
			},
			shared: map[string]string{"refs": replaced, "lost": replaced, "found": replaced, "archived": replaced},
		},
		"term": {
			of: func(w *world) any { return w.candidates[0].term },
			notEncoded: map[string]string{
				"Relay": constant, "lease": constant, "stop": constant, "healthy": constant, "start": constant, "id": constant, "inOutbox": constant, "session": "it is none only until the stream has been read back, and until then nothing is published", "workers": inStep, "woken": inStep,
				"responses": inStep, "opened": inStep, "read": inStep, "verifications": inStep, "handed": inStep, "standbys": inStep, "originals": inStep,
				"reported": inStep, "outcomes": inStep, "event": inStep, "skipped": telling,
				"guarded": "the explorer's publisher does not look at the lease", "refusals": telling, "orderedTold": telling, "probe": telling, "reminder": telling,
			},
			notCopied: map[string]string{
				"workers": inStep, "outcomes": inStep, "event": inStep,
				"skipped": telling, "guarded": "it is false", "refusals": telling, "probe": telling, "reminder": telling,
			},
			shared: map[string]string{"Relay": constant, "lease": constant},
		},
		"circuit": {
			of:     func(w *world) any { return &core(w).circuit },
			shared: map[string]string{"lost": replaced},
		},
		"lossDetector": {
			of: func(w *world) any { return &core(w).detector },
		},
		"core": {
			of: func(w *world) any { return core(w) },
			notEncoded: map[string]string{
				"batch": constant, "batchBytes": constant, "window": constant, "orderedFrom": constant, "maxAttempts": constant, "retry": constant,
				"poll": constant, "succeeded": "it counts for denied subjects only", "lanes": "they are those of the rows held", "spare": "which of them is used does not matter",
				"heldBytes": "all rows are of one size", "highest": "the explorer's outbox does without it",
				"backTo": "it counts only with back, and is encoded then", "maxData": constant, "noted": constant,
				"storedAt": noClock, "created": telling, "bytes": telling, "unfit": noKept, "doubles": inStep,
				"blind": noClock, "report": telling, "examining": inStep, "findings": inStep,
				"byHand": "nobody pauses the outbox", "aside": noKept, "asideAt": noClock, "busy": noClock,
			},
			notCopied: map[string]string{"spare": "as many others", "aside": noKept, "created": telling},
			shared:    map[string]string{"unfit": noKept, "trip": replaced},
		},
		"item": {
			of:     func(w *world) any { return core(w).held[1] },
			shared: map[string]string{"row": replaced},
		},
		"lane": {
			of: func(w *world) any { return core(w).held[1].lane },
			notEncoded: map[string]string{
				"rows": "it follows from item.lane", "bytes": "it follows from item.lane",
				"aggregate": "it is that of its rows", "last": "it follows from item.next", "inFlight": "it follows from item.inFlight",
			},
		},
		"checkpoints": {
			of: func(w *world) any { return &core(w).checkpoints },
			notEncoded: map[string]string{
				"began": noClock, "from": noClock, "clock": constant, "rows": "only how long an epoch lasts depends on it",
			},
		},
		"blocks": {
			of: func(w *world) any { return &core(w).blocked },
		},
		"block": {
			of: func(w *world) any { return core(w).blocked.of[aggregate{"A", "b"}] },
			notEncoded: map[string]string{
				"aggregate": "it is the key", "until": noClock, "place": "it follows from blocks.due",
			},
		},
		"oldRows": {of: func(w *world) any { return &core(w).old }},
		"roundTrip": {
			of:         func(w *world) any { return core(w).trip },
			notEncoded: map[string]string{"givenUp": "they are those of request.Dead", "epochs": "they follow from what is settled"},
			shared:     map[string]string{"givenUp": replaced, "epochs": replaced, "refill": replaced},
		},
		"Request": {
			of: func(w *world) any { return &core(w).trip.request },
			notEncoded: map[string]string{
				"MaxPayload": constant, "AskPause": "nobody pauses the outbox",
			},
			shared: map[string]string{"Settled": replaced, "Failed": replaced, "Dead": replaced, "ScanFrom": replaced, "Fetch": replaced},
		},
		"Settled": {
			of:         func(w *world) any { return &core(w).trip.request.Settled[0] },
			notEncoded: map[string]string{"Unarchived": "which rows are doubles is encoded with core.twice"},
			shared:     map[string]string{"Seqs": replaced},
		},
	}
}

// fullState is a world in which all that a state consists of is there.
func fullState(t *testing.T) *world {
	t.Helper()
	s := &scenario{aggregates: "aa", batch: 10}
	w, p := newWorld(s), newPort(s)
	o := w.candidates[0]
	p.world, p.candidate = w, o
	w.messages = []message{{seq: 2}}
	w.strays = []stray{{seq: 1}}
	o.term = p.newTerm()
	o.term.inOutbox = p
	o.looks = []glance{{}}
	o.ordered = &orderedBatch{}
	o.recovery = &readingBack{answers: []answer{{}}}
	c := o.term.core
	c.doubt = false
	rows := []store.Row{{Seq: 1, AggregateID: "a"}, {Seq: 2, AggregateID: "a"}}
	c.add(rows, time.Now())
	c.blocked.add(aggregate{"A", "b"}, time.Now(), 1)
	c.trip = &roundTrip{request: store.Request{Settled: []store.Settled{{Seqs: []int64{2}}}, Fetch: &store.Fetch{}}}
	return w
}

// Each field of what a state consists of is copied, not shared, and encoded; or it is listed above why not. So whoever adds
// a field decides, and nobody forgets the explorer.
func TestStateIsWhole(t *testing.T) {
	parts := partsOfState()
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		part := parts[name]
		t.Run(name, func(t *testing.T) {
			typ := reflect.TypeOf(part.of(fullState(t))).Elem()
			if typ.Name() != name {
				t.Fatalf("it is a %v", typ)
			}
			for _, reasons := range []map[string]string{part.notEncoded, part.notCopied, part.shared} {
				for field := range reasons {
					if _, ok := typ.FieldByName(field); !ok {
						t.Errorf("there is no field %s", field)
					}
				}
			}
			for i := range typ.NumField() {
				field := typ.Field(i)
				if !hasPart(parts, field.Type) { // Otherwise its fields are looked at one by one.
					t.Run(field.Name, func(t *testing.T) { part.test(t, i, field) })
				}
			}
		})
	}
}

// hasPart reports whether a type is one of the parts, so that nothing is to be said of it as a whole.
func hasPart(parts map[string]partOfState, typ reflect.Type) bool {
	_, ok := parts[typ.Name()]
	return ok && typ.Kind() == reflect.Struct
}

func (s partOfState) test(t *testing.T, i int, field reflect.StructField) {
	t.Helper()
	w := fullState(t)
	before := encodingOf(w)
	changed := change(fieldOf(s.of(w), i))
	after := encodingOf(w)
	reason, listed := s.notEncoded[field.Name]
	switch encoded := !bytes.Equal(before, after); {
	case !changed && !listed:
		t.Errorf("the test cannot change a %v: say in notEncoded why it need not be encoded, or teach change to do it", field.Type)
	case changed && !encoded && !listed:
		t.Error("the encoding of a state is without it: encode it in explore_candidate_test.go, or say in notEncoded why not")
	case encoded && listed:
		t.Errorf("it is encoded, although %q", reason)
	}

	_, dropped := s.notCopied[field.Name]
	_, shared := s.shared[field.Name]
	if dropped {
		return
	}
	w = fullState(t)
	if field := fieldOf(s.of(w), i); field.IsZero() { // A copy of nothing shows nothing.
		change(field)
	}
	original, copied := fieldOf(s.of(w), i), fieldOf(s.of(w.clone()), i)
	if !alike(original, copied) {
		t.Errorf("a copy of the state has %v, want %v: copy it in clone, or say in notCopied why not", copied, original)
	}
	if sharesMemory(original, copied) != shared {
		t.Errorf("the copy has the memory of the original: %v, want %v; copy it in clone, or say in shared why not", !shared, shared)
	}
}

// fieldOf returns a field, also one that is not exported, so that it can be read and set.
func fieldOf(pointer any, i int) reflect.Value {
	f := reflect.ValueOf(pointer).Elem().Field(i)
	return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem()
}

// change gives a value another one, and reports whether it could.
func change(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Pointer:
		if !v.IsNil() {
			v.SetZero()
		} else {
			v.Set(reflect.New(v.Type().Elem()))
		}
	case reflect.Slice:
		v.Set(reflect.Append(v.Slice3(0, v.Len(), v.Len()), reflect.Zero(v.Type().Elem())))
	case reflect.Interface:
		if v.Type() != reflect.TypeFor[error]() {
			return false
		}
		v.Set(reflect.ValueOf(errUnanswered))
	case reflect.Array:
		return change(v.Index(0))
	case reflect.Map:
		for _, key := range v.MapKeys() {
			v.SetMapIndex(key, reflect.Value{})
			return true
		}
		return false
	case reflect.Struct:
		if moment, ok := reflect.TypeAssert[time.Time](v); ok {
			if moment.IsZero() {
				moment = birth
			}
			v.Set(reflect.ValueOf(moment.Add(time.Hour)))
			return true
		}
		for i := range v.NumField() {
			if change(fieldOf(v.Addr().Interface(), i)) {
				return true
			}
		}
		return false
	default:
		return false
	}
	return true
}

// encodingOf returns a state's encoding. A state that cannot be encoded differs from all that can.
func encodingOf(w *world) (encoding []byte) {
	defer func() {
		if fault := recover(); fault != nil {
			encoding = fmt.Append(nil, fault)
		}
	}()
	var e encoder
	e.world(w)
	return e.b
}

// alike reports whether two values are the same but for the memory that they are in.
func alike(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Func:
		return a.IsNil() == b.IsNil()
	case reflect.Pointer:
		if _, part := partsOfState()[a.Type().Elem().Name()]; part || a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil() // Each field of a part is compared by itself.
		}
	case reflect.Array:
		for i := range a.Len() {
			if !alike(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	default:
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// sharesMemory reports whether a change to what one value refers to changes the other.
func sharesMemory(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Pointer, reflect.Map:
		return !a.IsNil() && a.UnsafePointer() == b.UnsafePointer()
	case reflect.Slice:
		return a.Len() > 0 && a.UnsafePointer() == b.UnsafePointer()
	default:
		return false
	}
}
