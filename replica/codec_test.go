package replica

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// sampleMessages are of all types that travel.
func sampleMessages() []*raftpb.Message {
	entry := func(index, term uint64, kind raftpb.EntryType, data string) *raftpb.Entry {
		e := &raftpb.Entry{Index: &index, Term: &term, Type: kind.Enum()}
		if data != "" {
			e.Data = []byte(data)
		}
		return e
	}
	u := func(v uint64) *uint64 { return &v }
	return []*raftpb.Message{
		{Type: raftpb.MsgApp.Enum(), From: u(1 << 63), Term: u(7), LogTerm: u(6), Index: u(300), Commit: u(299), Entries: []*raftpb.Entry{
			entry(301, 6, raftpb.EntryNormal, ""), entry(302, 7, raftpb.EntryConfChangeV2, "x"), entry(303, 7, raftpb.EntryNormal, string(make([]byte, 300))),
		}},
		{Type: raftpb.MsgApp.Enum(), From: u(2), Term: u(7), Commit: u(3)},
		{Type: raftpb.MsgAppResp.Enum(), From: u(2), Term: u(1 << 40), Index: u(9), Reject: new(true), RejectHint: u(4), LogTerm: u(3)},
		{Type: raftpb.MsgVote.Enum(), From: u(3), Term: u(2), LogTerm: u(1), Index: u(1), Context: []byte("CampaignTransfer")},
		{Type: raftpb.MsgHeartbeat.Enum(), From: u(3), Term: u(2), Context: []byte("12345678")},
		{Type: raftpb.MsgReadIndex.Enum(), From: u(3), Entries: []*raftpb.Entry{{Data: []byte("0123456789abcdef")}}},
		{Type: raftpb.MsgSnap.Enum(), From: u(3), Term: u(2), Snapshot: &raftpb.Snapshot{
			Metadata: &raftpb.SnapshotMetadata{Index: u(5), Term: u(1), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}},
		}},
	}
}

// same compares what raft reads of two messages: it makes no difference between
// a number that is 0 and one that is not there.
func same(t *testing.T, want, got *raftpb.Message) {
	t.Helper()
	require.Equal(t, len(want.GetEntries()), len(got.GetEntries()))
	for i, e := range want.GetEntries() {
		f := got.GetEntries()[i]
		require.Equal(t, []any{e.GetType(), e.GetTerm(), e.GetIndex()}, []any{f.GetType(), f.GetTerm(), f.GetIndex()})
		require.Equal(t, string(e.GetData()), string(f.GetData()))
	}
	figures := func(m *raftpb.Message) []any {
		return []any{m.GetType(), m.GetFrom(), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetReject(),
			m.GetRejectHint(), string(m.GetContext()), m.GetVote(), m.GetSnapshot().String()}
	}
	require.Equal(t, figures(want), figures(got))
}

func TestCodec(t *testing.T) {
	for _, m := range sampleMessages() {
		b, err := encodeMessage(m)
		require.NoError(t, err)
		got, err := decodeMessage(b)
		require.NoError(t, err)
		same(t, m, got)
		// It is protobuf's encoding.
		plain := new(raftpb.Message)
		require.NoError(t, proto.Unmarshal(b, plain))
		same(t, m, plain)
		b, err = proto.Marshal(m)
		require.NoError(t, err)
		got, err = decodeMessage(b)
		require.NoError(t, err)
		same(t, m, got)
	}
}

// FuzzDecode holds the decoder against protobuf's: what both read is the same,
// and what it reads protobuf reads too.
func FuzzDecode(f *testing.F) {
	for _, m := range sampleMessages() {
		b, err := encodeMessage(m)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeMessage(b)
		if err != nil {
			return
		}
		want := new(raftpb.Message)
		require.NoError(t, proto.Unmarshal(b, want))
		same(t, want, got)
	})
}

// TestGarbage sends a member what no member sends: it goes on.
func TestGarbage(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		rnd := rand.New(rand.NewPCG(1, 2))
		acked := c.count("a", 10)
		for range 2000 {
			m := sampleMessages()[rnd.IntN(len(sampleMessages()))]
			m.From = new(rnd.Uint64N(5))
			if rnd.IntN(2) == 0 {
				m.Term = nil
			} else {
				m.Term = new(rnd.Uint64N(3))
			}
			if m.GetType() != raftpb.MsgSnap && rnd.IntN(3) == 0 {
				m.Type = raftpb.MessageType(rnd.IntN(30)).Enum()
			}
			b, err := encodeMessage(m)
			require.NoError(t, err)
			if rnd.IntN(3) == 0 && len(b) > 0 {
				b[rnd.IntN(len(b))] ^= byte(1 << rnd.IntN(8))
			}
			c.nodes[1+rnd.Uint64N(3)].Receive(b[:rnd.IntN(len(b)+1)])
		}
		acked = append(acked, c.count("b", 10)...)
		inOrderOf(t, c.settled(), acked)
	})
}

// BenchmarkCodec has an append of one entry of 200 bytes.
func BenchmarkCodec(b *testing.B) {
	m := sampleMessages()[0]
	m.Entries = m.Entries[2:]
	m.Entries[0].Data = make([]byte, 200)
	for _, c := range []struct {
		name   string
		encode func(*raftpb.Message) ([]byte, error)
		decode func([]byte) (*raftpb.Message, error)
	}{
		{"own", encodeMessage, decodeMessage},
		{"protobuf", func(m *raftpb.Message) ([]byte, error) { return proto.Marshal(m) }, decodeSlowly},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				data, err := c.encode(m)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
