package file

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// benchClients are sessions that each send one command per entry.
type benchClients struct {
	*rig
	clients []*client
	data    []byte
}

func newBench(b *testing.B, clients int) *benchClients {
	r := &benchClients{rig: newRig(b), data: make([]byte, 128)}
	for i := range clients {
		r.clients = append(r.clients, r.client(uint64(i)))
	}
	return r
}

// all applies one command of every client as one entry.
func (r *benchClients) all(op func() any) {
	cmds := make([]*wire.Command, len(r.clients))
	for i, c := range r.clients {
		cmds[i] = c.command(op())
		cmds[i].Confirmed = cmds[i].Seq
	}
	for _, a := range r.entry(cmds...) {
		if a.Code != 0 {
			r.t.Fatal(answerError(a))
		}
	}
}

func (r *benchClients) put() any  { return putOp("jobs", string(r.data)) }
func (r *benchClients) take() any { return takeOp(1, "jobs") }

// BenchmarkApply: 128 byte records, each command of a session of its own that
// confirms its last one, entries of 1 and 64 commands. ns/op is per command.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("put/entry=%d", n), func(b *testing.B) {
			r := newBench(b, n)
			b.ReportAllocs()
			for b.Loop() {
				r.all(r.put)
			}
			perCommand(b, n)
		})
		b.Run(fmt.Sprintf("take/entry=%d", n), func(b *testing.B) {
			r := newBench(b, n)
			batch := &wire.Put{Target: inRoot, Key: "jobs"}
			for range 4096 {
				batch.Records = append(batch.Records, &wire.NewRecord{Data: r.data})
			}
			ino := gearsfs.Ino(r.do(batch).Ino)
			b.ReportAllocs()
			for b.Loop() {
				if r.m.StreamState(ino, "jobs").Ready < uint64(n) {
					b.StopTimer()
					r.do(batch)
					b.StartTimer()
				}
				r.all(r.take)
			}
			perCommand(b, n)
		})
		b.Run(fmt.Sprintf("put+take/entry=%d", n), func(b *testing.B) {
			r := newBench(b, n)
			b.ReportAllocs()
			for b.Loop() {
				r.all(r.put)
				r.all(r.take)
			}
			perCommand(b, n)
		})
		b.Run(fmt.Sprintf("lease+ack/entry=%d", n), func(b *testing.B) {
			r := newBench(b, n)
			r.do(putOp("jobs"))
			b.ReportAllocs()
			for b.Loop() {
				r.all(r.put)
				cmds := make([]*wire.Command, n)
				for i, c := range r.clients {
					cmds[i] = c.command(leaseOp(1, "jobs"))
					cmds[i].Confirmed = cmds[i].Seq
				}
				answers := r.entry(cmds...)
				for i, c := range r.clients {
					cmds[i] = c.command(&wire.Settle{Receipts: receipts(answers[i])})
					cmds[i].Confirmed = cmds[i].Seq
				}
				for _, a := range r.entry(cmds...) {
					require.Zero(b, a.Code)
				}
			}
			perCommand(b, n)
		})
	}
}

// BenchmarkChain: 64 clients that each acknowledge what they have leased and lease
// as many, in one transaction, of 1 and 64 records.
func BenchmarkChain(b *testing.B) {
	for _, records := range []int{1, 64} {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			r := newBench(b, 64)
			batch := &wire.Put{Target: inRoot, Key: "jobs"}
			for range 64 * records {
				batch.Records = append(batch.Records, &wire.NewRecord{Data: r.data})
			}
			r.do(batch)
			held := make([][]*wire.Receipt, 64)
			cmds := make([]*wire.Command, 64)
			b.ReportAllocs()
			for b.Loop() {
				r.do(batch)
				for i, c := range r.clients {
					ops := []any{leaseOp(uint32(records), "jobs")}
					if held[i] != nil {
						ops = append(ops, &wire.Settle{Receipts: held[i]})
					}
					cmds[i] = c.command(tx(ops...))
					cmds[i].Confirmed = cmds[i].Seq
				}
				for i, a := range r.entry(cmds...) {
					require.Zero(b, a.Code)
					held[i] = receipts(a.Steps[0])
				}
			}
			perCommand(b, 64)
		})
	}
}

func perCommand(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/command")
}
