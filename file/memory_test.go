package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// A stream that leaves memory goes on with the ids and the seqs that it had there;
// one that does not leave it, or has records, is not touched.
func TestInherit(t *testing.T) {
	r := newRig(t)
	r.do(putOp("other", "x"))
	ino := r.do(putOp("k", "x")).Ino
	r.do(takeOp(1, "k"))
	at := &wire.Target{Ino: ino}
	inherit := func(next uint64, ids ...*wire.InheritedId) error {
		_, err := r.try(gearsfs.Root, &wire.Inherit{Target: at, Key: "k", NextSeq: next, Ids: ids})
		r.check()
		return err
	}
	memory := func(yes bool) {
		r.do(configure("k", func(c *wire.Configure) { c.Settings = &wire.Settings{Memory: &yes} }))
	}
	withID := func(id string) *wire.Put {
		op := putOp("k", "x")
		op.Records[0].Id = id
		return op
	}
	require.ErrorIs(t, inherit(100), gearsfs.ErrInvalid, "it is on disk")
	require.EqualValues(t, 2, r.do(withID("before")).FirstSeq)
	r.do(takeOp(1, "k"))
	memory(true)
	require.NoError(t, inherit(100, &wire.InheritedId{Id: "a", Seq: 98, Time: r.now}, &wire.InheritedId{Id: "before", Seq: 99, Time: r.now},
		&wire.InheritedId{Id: "b", Seq: 99, Time: r.now}, &wire.InheritedId{Id: "late", Seq: 100, Time: r.now}, &wire.InheritedId{}))
	require.NoError(t, inherit(50, &wire.InheritedId{Id: "a", Seq: 20, Time: r.now}), "seqs never fall")
	memory(false)
	for id, seq := range map[string]uint64{"a": 98, "b": 99, "before": 2} {
		require.Equal(t, seq, r.do(withID(id)).FirstSeq, id)
		got, known, err := r.m.KnownID(gearsfs.Ino(ino), "k", id)
		require.NoError(t, err)
		require.True(t, known)
		require.Equal(t, seq, got)
	}
	require.EqualValues(t, 100, r.do(withID("late")).FirstSeq, "no record has had that seq")
	require.ErrorIs(t, inherit(200), gearsfs.ErrInvalid, "it has records")
	require.EqualValues(t, 101, r.do(putOp("k", "y")).FirstSeq)
	require.Len(t, r.do(takeOp(5, "k")).Records, 2)
	r.check()
}
