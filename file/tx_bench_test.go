package file

import (
	"fmt"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// BenchmarkRegister: a register of 128 bytes that is updated, beside one that
// is taken and put; a transaction that does the latter in one; and a put with an
// id. Each command of one session, an entry each.
func BenchmarkRegister(b *testing.B) {
	update := func(r *benchClients) any { return updateOp("jobs", string(r.data)) }
	for name, ops := range map[string][]func(r *benchClients) any{
		"update":        {update},
		"take, put":     {(*benchClients).take, (*benchClients).put},
		"transaction":   {func(r *benchClients) any { return tx(takeOp(1, "jobs"), putOp("jobs", string(r.data))) }},
		"update if_seq": {func(r *benchClients) any { return ifSeq(updateOp("jobs", string(r.data)), r.clients[0].seq) }},
	} {
		b.Run(name, func(b *testing.B) {
			r := newBench(b, 1)
			r.all(func() any { return update(r) })
			b.ReportAllocs()
			for b.Loop() {
				for _, op := range ops {
					r.all(func() any { return op(r) })
				}
			}
		})
	}
	b.Run("put with an id", func(b *testing.B) {
		r := newBench(b, 1)
		n := 0
		b.ReportAllocs()
		for b.Loop() {
			n++
			r.all(func() any {
				return &wire.Put{Target: inRoot, Key: "jobs", Records: []*wire.NewRecord{{Data: r.data, Id: fmt.Sprint(n)}}}
			})
		}
	})
}

// BenchmarkCopyFile copies files that are as large as one copy may be: for so
// long everything else waits.
func BenchmarkCopyFile(b *testing.B) {
	for _, size := range []int{128, copyBytesMax / copyRecordsMax, 64 << 10} {
		b.Run(fmt.Sprintf("records of %d", size), func(b *testing.B) {
			r := newBench(b, 1)
			n := min(copyRecordsMax, copyBytesMax/size)
			for left := n; left > 0; {
				batch := &wire.Put{Target: inRoot, Key: "jobs"}
				for ; left > 0 && len(batch.Records) < 200; left-- {
					batch.Records = append(batch.Records, &wire.NewRecord{Data: make([]byte, size)})
				}
				r.do(batch)
			}
			a, err := r.m.Lookup(gearsfs.RootIno, "f", gearsfs.Root)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(n * size))
			for b.Loop() {
				r.do(copyOp(a.Ino, "copy"))
			}
		})
	}
}
