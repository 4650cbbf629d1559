package dgm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gearsfs/gearsfs"
)

// Codec turns values into records and back.
type Codec[T any] interface {
	// Type names what the bytes are; records carry it.
	Type() string
	Encode(T) ([]byte, error)
	// Decode must not keep the bytes.
	Decode([]byte) (T, error)
}

// Stream is a stream of values of one Go type: what is put and what is taken
// have that type, or the program does not compile. Records that others have put
// there with another type name are refused when they are met (gearsfs.ErrType), and
// stay; Declare has the volume refuse such puts. A Stream is safe for concurrent
// use.
type Stream[T any] struct {
	streams Streams
	file    gearsfs.File
	key     gearsfs.Key
	codec   Codec[T]
}

// StreamOf is the stream of a file under a key, whose values codec encodes.
func StreamOf[T any](streams Streams, file gearsfs.File, key gearsfs.Key, codec Codec[T]) Stream[T] {
	return Stream[T]{streams, file, key, codec}
}

// Value is one that was taken or seen, and its record.
type Value[T any] struct {
	Value  T
	Record gearsfs.Record
}

// Declare makes the stream refuse records of other types. The file must exist.
func (s Stream[T]) Declare(ctx context.Context) error {
	name := s.codec.Type()
	return s.streams.Configure(ctx, s.file, s.key, StreamChange{Set: SettingsChange{Type: &name}})
}

// Put appends values, all or none, as Streams.Put.
func (s Stream[T]) Put(ctx context.Context, values ...T) (PutResult, error) {
	put := Put{File: s.file, Key: s.key, Records: make([]gearsfs.NewRecord, len(values))}
	for i, v := range values {
		var err error
		if put.Records[i], err = s.encode(v); err != nil {
			return PutResult{}, err
		}
	}
	return s.streams.Put(ctx, put)
}

// Update makes a value the only one of the stream, as Streams.Update.
func (s Stream[T]) Update(ctx context.Context, value T) (PutResult, error) {
	record, err := s.encode(value)
	if err != nil {
		return PutResult{}, err
	}
	return s.streams.Update(ctx, Update{File: s.file, Key: s.key, Record: record})
}

// Take removes the first value, waiting for it. One that can't be decoded stays
// the first.
func (s Stream[T]) Take(ctx context.Context) (T, error) {
	got, err := s.Lease(ctx, Take{})
	if err != nil {
		return got.Value, err
	}
	err = s.streams.Settle(ctx, Settle{Receipts: []gearsfs.Receipt{*got.Record.Receipt}})
	return got.Value, err
}

// Lease hands out the first value under a lease, which Streams.Settle ends; how
// says for how long and the like, not where and how many.
func (s Stream[T]) Lease(ctx context.Context, how Take) (Value[T], error) {
	how.File, how.Keys, how.Max, how.Lease = s.file, []gearsfs.Key{s.key}, 1, true
	records, err := s.streams.Take(ctx, how)
	if err != nil {
		return Value[T]{}, err
	}
	value, err := s.decode(records[0])
	if err != nil {
		back := Settle{Receipts: []gearsfs.Receipt{*records[0].Receipt}, Return: true}
		return Value[T]{}, errors.Join(err, s.streams.Settle(ctx, back))
	}
	return value, nil
}

// Peek shows the first value that is newer than after, waiting for it; after 0
// is the first that is left.
func (s Stream[T]) Peek(ctx context.Context, after gearsfs.Seq) (Value[T], error) {
	records, err := s.streams.Peek(ctx, Peek{File: s.file, Key: s.key, Follow: true, After: after})
	if err != nil {
		return Value[T]{}, err
	}
	return s.decode(records[0])
}

func (s Stream[T]) encode(v T) (gearsfs.NewRecord, error) {
	data, err := s.codec.Encode(v)
	if err != nil {
		return gearsfs.NewRecord{}, fmt.Errorf("encode %s: %w", s.codec.Type(), err)
	}
	return gearsfs.NewRecord{Data: data, Type: s.codec.Type()}, nil
}

func (s Stream[T]) decode(r gearsfs.Record) (Value[T], error) {
	name := s.codec.Type()
	if r.Type != name {
		return Value[T]{}, gearsfs.ErrType.Because("record %d of stream %q has type %q, not %q", r.Place.Seq, s.key, r.Type, name)
	}
	v, err := s.codec.Decode(r.Data)
	if err != nil {
		return Value[T]{}, fmt.Errorf("decode %s, record %d of stream %q: %w", name, r.Place.Seq, s.key, err)
	}
	return Value[T]{v, r}, nil
}

// JSON is the codec that encodes values as JSON, under a type name.
func JSON[T any](name string) Codec[T] { return jsonCodec[T]{name} }

type jsonCodec[T any] struct{ name string }

func (c jsonCodec[T]) Type() string               { return c.name }
func (c jsonCodec[T]) Encode(v T) ([]byte, error) { return json.Marshal(v) }
func (c jsonCodec[T]) Decode(data []byte) (v T, err error) {
	err = json.Unmarshal(data, &v)
	return v, err
}

// Text is the codec of strings as they are, under a type name.
func Text(name string) Codec[string] { return textCodec{name} }

type textCodec struct{ name string }

func (c textCodec) Type() string                       { return c.name }
func (c textCodec) Encode(v string) ([]byte, error)    { return []byte(v), nil }
func (c textCodec) Decode(data []byte) (string, error) { return string(data), nil }
