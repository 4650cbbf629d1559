package gearsfs

import (
	"fmt"
	"strconv"
	"time"
)

// Ino identifies an inode of a volume. Inode numbers are never reused.
// RootIno is the volume's root directory; 0 means "none".
type Ino uint64

// RootIno is the inode number of a volume's root directory.
const RootIno Ino = 1

// Seq identifies a record within its stream. It starts at 1, rises by one with
// each put and is never reused; 0 means "before the first".
type Seq uint64

// Pos is a place in a stream in bytes: the number of bytes in front of it.
// Unlike Seq it is no identity: empty records share it, and truncating a file
// and writing it again uses the same positions again.
type Pos uint64

// Place orders the records of a stream: by Pos, then by Seq.
type Place struct {
	Pos Pos
	Seq Seq
}

// Less reports whether p comes before q in a stream.
func (p Place) Less(q Place) bool {
	return p.Pos < q.Pos || p.Pos == q.Pos && p.Seq < q.Seq
}

// Index is a place in a volume's replicated log; the first entry has index 1.
type Index uint64

// MemberID identifies a node in the group that replicates a volume. The node
// that made the volume is 1; the others take theirs from the identity of their
// data, so it is never used again for other data. 0 means none.
type MemberID uint64

// Hex is the id in base 16, as messages and -o json show it; "" for none.
func (id MemberID) Hex() string {
	if id == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(id), 16)
}

// SessionID names a session: a client of a volume that owns waiting takes and
// leases and whose retries are recognised. It contains the log time at which
// it was minted, so that a late stranger is told from a known session. The
// zero SessionID belongs to no session: commands under it are not recognised
// when they are retried and can hold no lease.
type SessionID struct {
	Minted int64  // log time, nanoseconds since the Unix epoch
	Salt   uint64 // random
}

// IsZero reports whether s names no session.
func (s SessionID) IsZero() bool { return s == SessionID{} }

// Less orders session ids by the time they were minted, then by salt.
func (s SessionID) Less(t SessionID) bool {
	return s.Minted < t.Minted || s.Minted == t.Minted && s.Salt < t.Salt
}

func (s SessionID) String() string {
	return strconv.FormatInt(s.Minted, 36) + "-" + strconv.FormatUint(s.Salt, 36)
}

// SessionTTL is how long a volume remembers a session that is closed or has
// lost its client, and how old a session id may be when it is first used.
const SessionTTL = 60 * time.Second

// Receipt names one lease: the record, and the grant of it. A record that is
// leased again after it was returned has another Fence.
type Receipt struct {
	Ino   Ino
	Key   Key
	Place Place
	Fence uint64
}

func (r Receipt) String() string {
	return fmt.Sprintf("%d.%d.%d.%d.%s", r.Ino, r.Place.Pos, r.Place.Seq, r.Fence, r.Key)
}
