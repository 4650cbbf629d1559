package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/gearsfs/gearsfs"
)

// intakeBytesMax bounds what an intake has read ahead, but for one record that
// is larger; intakeRecordsMax bounds the number.
const (
	intakeBytesMax   = 8 << 20
	intakeRecordsMax = 4 * gearsfs.BatchRecordsMax
	intakeReadBytes  = 256 << 10
)

// intake cuts a byte stream into records while the ones before are being put:
// a goroutine reads ahead, next takes all that it has.
//
//  1. pending holds whole records only; the beginning of the next one is in
//     open, which only the reading goroutine touches, as it does number.
//  2. failed is set once, after the last record was added.
type intake struct {
	in     io.Reader
	end    byte
	open   []byte
	number int           // of records read so far
	done   chan struct{} // closed by stop

	mu      sync.Mutex
	pending pieces
	failed  error
	arrived chan struct{} // holds one token where pending or failed changed
	room    chan struct{} // holds one token where pending was taken

	spare pieces // next's, to be filled again
}

// pieces are records in one buffer, each ending where ends says.
type pieces struct {
	buf  []byte
	ends []int
}

// newIntake reads from in until its end, an error, or stop. The goroutine that
// reads is left to the process where a read does not return.
func newIntake(in io.Reader, end byte) *intake {
	k := &intake{
		in: in, end: end, done: make(chan struct{}),
		arrived: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	go k.run()
	return k
}

func (k *intake) stop() { close(k.done) }

// next waits for records and returns all that are there, with io.EOF or the
// error that ended the reading behind the last of them. The records are valid
// until next is called again.
func (k *intake) next(ctx context.Context) ([]gearsfs.NewRecord, error) {
	for {
		k.mu.Lock()
		got, err := k.pending, k.failed
		if len(got.ends) > 0 || err != nil {
			k.pending = pieces{k.spare.buf[:0], k.spare.ends[:0]}
			k.spare = got
			k.mu.Unlock()
			wake(k.room)
			return got.records(), err
		}
		k.mu.Unlock()
		select {
		case <-k.arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p pieces) records() []gearsfs.NewRecord {
	records := make([]gearsfs.NewRecord, len(p.ends))
	begin := 0
	for i, end := range p.ends {
		records[i].Data = p.buf[begin:end:end]
		begin = end
	}
	return records
}

func (k *intake) run() {
	err := k.read()
	k.mu.Lock()
	k.failed = err
	k.mu.Unlock()
	wake(k.arrived)
}

// read returns why there is no more to read: io.EOF at the end of the input.
func (k *intake) read() error {
	chunk := make([]byte, intakeReadBytes)
	for {
		n, err := k.in.Read(chunk)
		rest := chunk[:n]
		for {
			i := bytes.IndexByte(rest, k.end)
			if i < 0 {
				break
			}
			if err := k.add(rest[:i]); err != nil {
				return err
			}
			rest = rest[i+1:]
		}
		k.open = append(k.open, rest...)
		if len(k.open) > gearsfs.RecordBytesMax {
			return k.tooBig()
		}
		if err == io.EOF && len(k.open) > 0 {
			if err := k.add(nil); err != nil {
				return err
			}
		}
		wake(k.arrived)
		switch {
		case err == io.EOF:
			return io.EOF
		case err != nil:
			return fmt.Errorf("standard input: %w", err)
		}
	}
}

// add ends the open record with last and adds it to what is pending, waiting
// for room; it returns gearsfs.ErrClosed when nobody takes any more.
func (k *intake) add(last []byte) error {
	if len(k.open)+len(last) > gearsfs.RecordBytesMax {
		return k.tooBig()
	}
	k.mu.Lock()
	for len(k.pending.buf) >= intakeBytesMax || len(k.pending.ends) >= intakeRecordsMax {
		k.mu.Unlock()
		wake(k.arrived)
		select {
		case <-k.room:
		case <-k.done:
			return gearsfs.ErrClosed
		}
		k.mu.Lock()
	}
	k.pending.buf = append(append(k.pending.buf, k.open...), last...)
	k.pending.ends = append(k.pending.ends, len(k.pending.buf))
	k.mu.Unlock()
	k.open = k.open[:0]
	k.number++
	return nil
}

func (k *intake) tooBig() error {
	return gearsfs.ErrTooBig.Because("record %d of the input is larger than %d bytes", k.number+1, gearsfs.RecordBytesMax)
}

// wake leaves a token in a channel of capacity one.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
