// Package dgmtest is the suite that every implementation of dgm.Manager
// passes.
package dgmtest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Opener opens one more session of the same volume, for a caller that may do
// everything. The test closes what it opens.
type Opener func(t *testing.T) dgm.Manager

// Fresh makes a new, empty volume and returns how sessions of it are opened.
type Fresh func(t *testing.T) Opener

// test is one of the suite.
type test struct {
	name string
	run  func(t *testing.T, s *suite)
}

// RunAlone runs the part of the suite that measures the process, beside which
// nothing else may run in it.
func RunAlone(t *testing.T, fresh Fresh) {
	run(t, fresh, []test{{"MemoryIsBounded", memoryIsBounded}})
}

// Run runs the rest of the suite.
func Run(t *testing.T, fresh Fresh) {
	run(t, fresh, []test{
		{"PutTakeOrder", putTakeOrder},
		{"Batches", batches},
		{"EmptyRecordIsARecord", emptyRecord},
		{"TakeWaitsForPut", takeWaitsForPut},
		{"TakeWaitsForMissingFile", takeWaitsForMissingFile},
		{"TakeWaitsForMissingKey", takeWaitsForMissingKey},
		{"FirstComeFirstServed", firstCome},
		{"CancelledTakeLosesNothing", cancelledTake},
		{"SeveralKeys", severalKeys},
		{"NoWait", noWait},
		{"LeaseAcknowledged", leaseAcknowledged},
		{"LeaseReturnedInOrder", leaseReturned},
		{"LeaseEndsWithSession", leaseEndsWithSession},
		{"LeaseOfAnother", leaseOfAnother},
		{"LeaseRunsOut", leaseRunsOut},
		{"LeaseExtended", leaseExtended},
		{"LeaseByReceipt", leaseByReceipt},
		{"ReturnedLater", returnedLater},
		{"DeadAfterTries", deadAfterTries},
		{"DelayedPut", delayedPut},
		{"AgeMakesRoom", ageMakesRoom},
		{"WhatFullStreamsDo", whatFullStreamsDo},
		{"Settings", settings},
		{"IDsOnce", idsOnce},
		{"KnownNeedNoRoom", knownNeedNoRoom},
		{"BecomesKnown", becomesKnown},
		{"SealsBehindTheCancelled", sealsBehindTheCancelled},
		{"GoneWhenAcknowledged", goneWhenAcknowledged},
		{"Updates", updates},
		{"Transact", transact},
		{"TransactRefused", transactRefused},
		{"TransactWaits", transactWaits},
		{"TransactConditions", transactConditions},
		{"TransactLosesItsLease", transactLosesItsLease},
		{"TransactNamesComeLater", transactNamesComeLater},
		{"OldestFirst", oldestFirst},
		{"RandomSets", randomSets},
		{"MoveAndCopy", moveAndCopy},
		{"Typed", typed},
		{"InMemory", inMemory},
		{"MemoryAndDisk", memoryAndDisk},
		{"MovesIntoMemory", movesIntoMemory},
		{"MemoryNearMisses", memoryNearMisses},
		{"MemoryBesideTheDead", memoryBesideTheDead},
		{"BatchesInMemory", alike(batches, "k")},
		{"FirstComeInMemory", alike(firstCome, "k")},
		{"CancelledTakeInMemory", alike(cancelledTake, "k")},
		{"SeveralKeysInMemory", alike(severalKeys, "high", "low")},
		{"NoWaitInMemory", alike(noWait, "k")},
		{"LeaseAcknowledgedInMemory", alike(leaseAcknowledged, "k")},
		{"LeaseReturnedInMemory", alike(leaseReturned, "k")},
		{"LeaseEndsWithSessionInMemory", alike(leaseEndsWithSession, "k")},
		{"LeaseOfAnotherInMemory", alike(leaseOfAnother, "k")},
		{"LeaseRunsOutInMemory", alike(leaseRunsOut, "k")},
		{"LeaseExtendedInMemory", alike(leaseExtended, "k")},
		{"LeaseByReceiptInMemory", alike(leaseByReceipt, "k")},
		{"ReturnedLaterInMemory", alike(returnedLater, "k")},
		{"DeadAfterTriesInMemory", alike(deadAfterTries, "k")},
		{"DelayedPutInMemory", alike(delayedPut, "k")},
		{"AgeMakesRoomInMemory", alike(ageMakesRoom, "k")},
		{"WhatFullStreamsDoInMemory", alike(whatFullStreamsDo, "k")},
		{"IdsOnceInMemory", alike(idsOnce, "k")},
		{"KnownNeedNoRoomInMemory", alike(knownNeedNoRoom, "k")},
		{"BecomesKnownInMemory", alike(becomesKnown, "k")},
		{"SealsBehindTheCancelledInMemory", alike(sealsBehindTheCancelled, "k")},
		{"GoneWhenAcknowledgedInMemory", alike(goneWhenAcknowledged, "k")},
		{"UpdatesInMemory", alike(updates, "k")},
		{"PeekInMemory", alike(peek, "k")},
		{"PeekFollowInMemory", alike(peekFollow, "k")},
		{"SealAndEndInMemory", alike(sealAndEnd, "k")},
		{"FullPutWaitsInMemory", alike(fullPutWaits, "k")},
		{"FullPutsKeepOrderInMemory", alike(fullPutsKeepOrder, "k")},
		{"RepeatedKeysInMemory", alike(repeatedKeys, "k", "l")},
		{"CancelledPutLetsOthersByInMemory", alike(cancelledPutLetsOthersBy, "k")},
		{"EachRecordOnceInMemory", alike(eachRecordOnce, "k")},
		{"LastRecordsInMemory", alike(lastRecords, "k")},
		{"NearMisses", nearMisses},
		{"FollowMissesNothing", followMissesNothing},
		{"Peek", peek},
		{"PeekFollow", peekFollow},
		{"SealAndEnd", sealAndEnd},
		{"FullPutWaits", fullPutWaits},
		{"FullPutsKeepOrder", fullPutsKeepOrder},
		{"ClearAndDrop", clearAndDrop},
		{"RemovedWhileWaiting", removedWhileWaiting},
		{"RepeatedKeys", repeatedKeys},
		{"CancelledPutLetsOthersBy", cancelledPutLetsOthersBy},
		{"NotAFile", notAFile},
		{"LinkAppears", linkAppears},
		{"RenamedInto", renamedInto},
		{"AnyBytes", anyBytes},
		{"TakeOnBlocks", takeOnBlocks},
		{"BadInput", badInput},
		{"ListStreams", listStreams},
		{"EachRecordOnce", eachRecordOnce},
		{"LastRecordsOfManyTakers", lastRecords},
		{"Tree", tree},
		{"Rename", rename},
		{"Bytes", bytesOfFile},
		{"AppendIsPut", appendIsPut},
		{"OpenWithoutName", openWithoutName},
		{"CreateAndLetGo", createAndLetGo},
		{"Xattrs", xattrs},
		{"ReadDirPages", readDirPages},
		{"LocksExclude", locksExclude},
		{"LocksOfAnOwner", locksOfAnOwner},
		{"LockWaits", lockWaits},
		{"LocksAreFair", locksAreFair},
		{"LockDeadlock", lockDeadlock},
		{"LockEndsWithSession", lockEndsWithSession},
		{"LockOfTheUnnamed", lockOfTheUnnamed},
		{"Quotas", quotas},
		{"QuotaIsCounted", quotaIsCounted},
		{"Watch", watch},
		{"Waits", waits},
		{"Remotes", remotes},
		{"Status", status},
		{"Nodes", nodes},
		{"CloseEndsWaits", closeEndsWaits},
	})
}

func run(t *testing.T, fresh Fresh, tests []test) {
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			open := fresh(t)
			test.run(t, &suite{t: t, ctx: ctx, open: open, m: open(t)})
		})
	}
}

// suite is one test's volume, with one session open.
type suite struct {
	t    *testing.T
	ctx  context.Context // ends a test that hangs
	open Opener
	m    dgm.Manager
}

var queue = gearsfs.At("/queue")

func (s *suite) put(m dgm.Manager, key gearsfs.Key, records ...string) dgm.PutResult {
	s.t.Helper()
	var rs []gearsfs.NewRecord
	for _, r := range records {
		rs = append(rs, gearsfs.NewRecord{Data: []byte(r)})
	}
	res, err := m.Put(s.ctx, dgm.Put{File: queue, Key: key, Records: rs})
	require.NoError(s.t, err)
	return res
}

func (s *suite) take(m dgm.Manager, n int, keys ...gearsfs.Key) []string {
	s.t.Helper()
	rs, err := m.Take(s.ctx, dgm.Take{File: queue, Keys: keys, Max: n})
	require.NoError(s.t, err)
	return texts(rs)
}

func (s *suite) lease(m dgm.Manager, n int, key gearsfs.Key) []gearsfs.Record {
	s.t.Helper()
	rs, err := m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{key}, Max: n, Lease: true})
	require.NoError(s.t, err)
	return rs
}

func (s *suite) empty(m dgm.Manager, key gearsfs.Key) {
	s.t.Helper()
	_, err := m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{key}, NoWait: true})
	require.ErrorIs(s.t, err, gearsfs.ErrEmpty)
}

func texts(rs []gearsfs.Record) []string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r.Data))
	}
	return out
}

func receipts(rs []gearsfs.Record) []gearsfs.Receipt {
	var out []gearsfs.Receipt
	for _, r := range rs {
		out = append(out, *r.Receipt)
	}
	return out
}

// outcome is what a call in the background returned.
type outcome struct {
	records []gearsfs.Record
	err     error
}

// takeLater starts a take and returns when it waits.
func (s *suite) takeLater(ctx context.Context, m dgm.Manager, take dgm.Take) <-chan outcome {
	s.t.Helper()
	before := s.waiting()
	out := make(chan outcome, 1)
	go func() {
		rs, err := m.Take(ctx, take)
		out <- outcome{rs, err}
	}()
	s.untilWaiting(before + 1)
	return out
}

func (s *suite) waiting() int {
	s.t.Helper()
	waits, err := s.m.Waits(s.ctx)
	require.NoError(s.t, err)
	return len(waits)
}

// untilWaiting waits until n operations wait. It asks again and again: waiting
// is the one thing that nothing announces.
func (s *suite) untilWaiting(n int) {
	s.t.Helper()
	for s.waiting() != n {
		require.NoError(s.t, s.ctx.Err())
	}
}

func (s *suite) receive(out <-chan outcome) []gearsfs.Record {
	s.t.Helper()
	o := s.outcome(out)
	require.NoError(s.t, o.err)
	return o.records
}

func (s *suite) outcome(out <-chan outcome) outcome {
	s.t.Helper()
	select {
	case o := <-out:
		return o
	case <-s.ctx.Done():
		s.t.Fatal("nothing came")
		return outcome{}
	}
}
