// Package event is what an event has to be like to become a message: the rules of its headers, and how large they may be.
//
// The store applies them when a producer inserts and the stream when the relay publishes, so that an event which
// [github.com/go-outbox/go-outbox/store.Insert] takes is never refused for its headers later. (Not all: whether names that start with ce- are free depends on the relay's
// settings, and plain SQL is checked by the table for the shape of the headers only.)
//
// It imports no other package of the module, and all may import it.
package event
