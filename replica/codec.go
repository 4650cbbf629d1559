package replica

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
)

// Raft's messages travel as the protobuf encoding of raftpb.Message, without
// the receiver's id, so that the same bytes serve several. It is written and
// read here by hand: raftpb has no generated code for that, reflection takes twice
// the time and three times the memory (BenchmarkCodec), and the data of entries is
// not copied when it is read.

// Field numbers of raftpb.Message and raftpb.Entry.
const (
	fieldType       = 1
	fieldFrom       = 3
	fieldTerm       = 4
	fieldLogTerm    = 5
	fieldIndex      = 6
	fieldEntries    = 7
	fieldCommit     = 8
	fieldReject     = 10
	fieldRejectHint = 11
	fieldContext    = 12

	fieldEntryType  = 1
	fieldEntryTerm  = 2
	fieldEntryIndex = 3
	fieldEntryData  = 4
)

// encodeMessage encodes m for whomever it goes to.
func encodeMessage(m *raftpb.Message) ([]byte, error) {
	if m.GetSnapshot() != nil || len(m.GetResponses()) > 0 || m.GetVote() != 0 {
		b, err := proto.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode message: %w", err)
		}
		return b, nil
	}
	size := 64 + len(m.GetContext())
	for _, e := range m.GetEntries() {
		size += 32 + len(e.GetData())
	}
	b := make([]byte, 0, size)
	b = appendUint(b, fieldType, uint64(m.GetType()))
	b = appendUint(b, fieldFrom, m.GetFrom())
	b = appendUint(b, fieldTerm, m.GetTerm())
	b = appendUint(b, fieldLogTerm, m.GetLogTerm())
	b = appendUint(b, fieldIndex, m.GetIndex())
	for _, e := range m.GetEntries() {
		b = appendEntry(b, e)
	}
	b = appendUint(b, fieldCommit, m.GetCommit())
	if m.GetReject() {
		b = appendUint(b, fieldReject, 1)
	}
	b = appendUint(b, fieldRejectHint, m.GetRejectHint())
	if len(m.GetContext()) > 0 {
		b = protowire.AppendTag(b, fieldContext, protowire.BytesType)
		b = protowire.AppendBytes(b, m.GetContext())
	}
	return b, nil
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func uintSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v) // all fields have tags of one byte
}

func appendEntry(b []byte, e *raftpb.Entry) []byte {
	size := uintSize(uint64(e.GetType())) + uintSize(e.GetTerm()) + uintSize(e.GetIndex())
	if n := len(e.GetData()); n > 0 {
		size += 1 + protowire.SizeBytes(n)
	}
	b = protowire.AppendTag(b, fieldEntries, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendUint(b, fieldEntryType, uint64(e.GetType()))
	b = appendUint(b, fieldEntryTerm, e.GetTerm())
	b = appendUint(b, fieldEntryIndex, e.GetIndex())
	if len(e.GetData()) > 0 {
		b = protowire.AppendTag(b, fieldEntryData, protowire.BytesType)
		b = protowire.AppendBytes(b, e.GetData())
	}
	return b
}

// received is a message with the memory that its fields point to.
type received struct {
	message raftpb.Message
	kind    raftpb.MessageType

	from, term, logTerm, index, commit, rejectHint uint64
	reject                                         bool
}

type receivedEntry struct {
	entry       raftpb.Entry
	kind        raftpb.EntryType
	term, index uint64
}

var errMessage = gearsfs.ErrProtocol.Because("no raft message")

// decodeMessage decodes what encodeMessage made. The message points into b.
func decodeMessage(b []byte) (*raftpb.Message, error) {
	r := new(received)
	m := &r.message
	m.Type, m.From, m.Term, m.LogTerm, m.Index, m.Commit = &r.kind, &r.from, &r.term, &r.logTerm, &r.index, &r.commit
	entries, err := countEntries(b)
	if err != nil {
		return nil, err
	}
	var room []receivedEntry
	if entries > 0 {
		room = make([]receivedEntry, entries)
		m.Entries = make([]*raftpb.Entry, 0, entries)
	}
	for rest := b; len(rest) > 0; {
		field, kind, n := protowire.ConsumeTag(rest)
		rest = rest[n:]
		switch kind {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(rest)
			rest = rest[n:]
			if !r.set(field, v) {
				return decodeSlowly(b)
			}
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(rest)
			rest = rest[n:]
			switch field {
			case fieldEntries:
				e := &room[len(m.Entries)]
				if err := e.decode(v); err != nil {
					return nil, err
				}
				m.Entries = append(m.Entries, &e.entry)
			case fieldContext:
				m.Context = v
			default:
				return decodeSlowly(b)
			}
		default:
			return decodeSlowly(b)
		}
	}
	return m, nil
}

// set sets a number; false: the field is another's to know.
func (r *received) set(field protowire.Number, v uint64) bool {
	switch field {
	case fieldType:
		r.kind = raftpb.MessageType(v)
	case fieldFrom:
		r.from = v
	case fieldTerm:
		r.term = v
	case fieldLogTerm:
		r.logTerm = v
	case fieldIndex:
		r.index = v
	case fieldCommit:
		r.commit = v
	case fieldReject:
		r.reject = v != 0
		r.message.Reject = &r.reject
	case fieldRejectHint:
		r.rejectHint = v
		r.message.RejectHint = &r.rejectHint
	default:
		return false
	}
	return true
}

// countEntries counts the entries of a message all of whose fields are whole.
func countEntries(b []byte) (int, error) {
	entries := 0
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, errMessage
		}
		m := protowire.ConsumeFieldValue(field, kind, b[n:])
		if m < 0 {
			return 0, errMessage
		}
		if field == fieldEntries && kind == protowire.BytesType {
			entries++
		}
		b = b[n+m:]
	}
	return entries, nil
}

func (r *receivedEntry) decode(b []byte) error {
	e := &r.entry
	e.Type, e.Term, e.Index = &r.kind, &r.term, &r.index
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMessage
		}
		b = b[n:]
		switch {
		case kind == protowire.VarintType && field <= fieldEntryIndex:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return errMessage
			}
			b = b[n:]
			switch field {
			case fieldEntryType:
				r.kind = raftpb.EntryType(v)
			case fieldEntryTerm:
				r.term = v
			case fieldEntryIndex:
				r.index = v
			}
		case kind == protowire.BytesType && field == fieldEntryData:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return errMessage
			}
			b = b[n:]
			e.Data = v
		default:
			return errMessage
		}
	}
	return nil
}

// decodeSlowly decodes the messages that are rare.
func decodeSlowly(b []byte) (*raftpb.Message, error) {
	m := new(raftpb.Message)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, errMessage
	}
	return m, nil
}
