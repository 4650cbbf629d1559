package stream

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// noRows keeps nothing: what remains is the queue's own cost.
type noRows struct{ Memory }

func (*noRows) Set(at gearsfs.Place, r *Record) {}

func BenchmarkPutTake128(b *testing.B) {
	q, err := NewQueue(NewState(), new(noRows), NewPool(poolBytes))
	require.NoError(b, err)
	data := make([]byte, 128)
	var taken []Taken
	b.ReportAllocs()
	b.SetBytes(128)
	for b.Loop() {
		q.Append(data, "", 0)
		if taken, err = q.Take(taken[:0], 1, 1<<20, false); err != nil || len(taken) != 1 {
			b.Fatal(err, len(taken))
		}
	}
}
