//! Room for connections: accounts, eviction, expiry.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use calico_ebpf_common::{
    abi::{ACCOUNT_HOST, ACCOUNT_TOTAL, Conn, Quota, Root, VICTIMS, conn_flags},
    packet::{Ip as _, V4, V6},
    track,
};

use crate::{
    maps::{QUOTAS, ROOT, VICTIM_KEYS},
    tables::Tables,
};

/// Keys that the clock hand looks at for each connection that comes when room is short, or goes ahead of its time: more
/// than one, so that it gains on them.
const HAND_STEPS: u32 = 3;
/// Keys that it looks at for an account that has no candidates for eviction left.
const SEARCH_STEPS: u32 = 16;
/// Candidates for eviction that are tried before a connection is refused.
const EVICTION_TRIES: u32 = 16;
const EEXIST: i32 = -17;

/// Results of [`open`].
pub(crate) const OPENED: u32 = 0;
pub(crate) const QUOTA: u32 = 1;
pub(crate) const FULL: u32 = 2;

/// Enters a new connection. There may already be one, entered by another processor at the same time.
#[inline(never)]
pub(crate) fn open<F: Tables>(key: &F::Key, conn: &Conn, now: u32) -> u32 {
    let Some(root) = ROOT.get(0) else { return FULL };
    if is_short(root, conn.account) {
        turn::<F>(now, HAND_STEPS);
    }
    let mut place = make_room(root, conn.account);
    if place.is_none() {
        // All candidates have gone or are assured: others are looked for.
        turn::<F>(now, SEARCH_STEPS);
        place = make_room(root, conn.account);
    }
    let Some(place) = place else { return QUOTA };
    match F::insert_conn(key, conn) {
        Ok(()) => {}
        Err(EEXIST) => return OPENED,
        Err(_) => return FULL,
    }
    if !F::ring_push(key, conn.stamp) {
        // Without a place in the ring it would never expire.
        F::remove_conn(key);
        return FULL;
    }
    charge(conn.account, 1, 1);
    remember::<F>(key, conn.account, place);
    OPENED
}

/// Makes the connection a candidate for eviction.
#[inline(always)]
fn remember<F: Tables>(key: &F::Key, account: u32, place: u32) {
    if let Some(victim) = VICTIM_KEYS.get_ptr_mut(account * VICTIMS + place) {
        // SAFETY: the slot is in the map. Another processor may write it at the same time: a torn key finds nothing.
        unsafe { *victim = F::to_victim(key) };
    }
}

/// Whether connections that have expired take room that others may need soon. Before that they harm nobody, and looking
/// for them would make each new connection dearer by half.
#[inline(always)]
fn is_short(root: &Root, account: u32) -> bool {
    let (Some(quota), Some(total)) = (QUOTAS.get(account), QUOTAS.get(ACCOUNT_TOTAL)) else { return true };
    total.held as i64 >= i64::from(root.conn_limit / 4) || quota.unassured as i64 >= i64::from(root.conn_unassured / 2)
}

/// Removes a connection ahead of its time. Its key stays in the ring: the hand turns, so that such keys do not fill it.
#[inline(always)]
pub(crate) fn close_early<F: Tables>(key: &F::Key, account: u32, flags: u8, now: u32) {
    close::<F>(key, account, flags);
    turn::<F>(now, HAND_STEPS);
}

/// Removes a connection; its account pays back.
#[inline(always)]
fn close<F: Tables>(key: &F::Key, account: u32, flags: u8) -> bool {
    let removed = F::remove_conn(key);
    if removed {
        charge(account, -1, if flags & conn_flags::ASSURED == 0 { -1 } else { 0 });
    }
    removed
}

/// Turns the clock hand: takes keys from the head of the ring, closes what has expired, puts the rest back.
/// How many were closed.
#[inline(always)]
pub(crate) fn turn<F: Tables>(now: u32, steps: u32) -> u32 {
    let mut closed = 0;
    for _ in 0..steps {
        closed += if size_of::<F::Key>() == 16 { cali_turn4(now) } else { cali_turn6(now) };
    }
    closed
}

/// Global functions over plain numbers: the verifier looks at them once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_turn4(now: u32) -> u32 {
    turn_once::<V4>(now)
}

/// See [`cali_turn4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_turn6(now: u32) -> u32 {
    turn_once::<V6>(now)
}

#[inline(always)]
fn turn_once<F: Tables>(now: u32) -> u32 {
    let Some(root) = ROOT.get(0) else { return 0 };
    let Some(popped) = F::ring_pop() else { return 0 };
    let key = &popped.key;
    let Some(conn) = F::conn(key) else { return 0 };
    // SAFETY: the entry stays readable as long as the program runs.
    let conn = unsafe { &*conn };
    if !popped.is_of(conn.stamp) {
        // Of a later connection between the same ends, which is in the ring itself.
        return 0;
    }
    // Without a place in the ring it would never expire.
    if track::is_expired(conn, F::key_protocol(key), now, &root.timeouts) || !F::ring_push(key, conn.stamp) {
        return u32::from(close::<F>(key, conn.account, conn.flags));
    }
    if conn.flags & conn_flags::ASSURED == 0 {
        // Those that are remembered were new once, and may be gone or assured.
        // SAFETY: the helper has no preconditions.
        remember::<F>(key, conn.account, unsafe { bpf_get_prandom_u32() } % VICTIMS);
    }
    0
}

/// Sees to it that the account may have one more, if need be at the price of one of its own, and says which of its
/// candidates the new one replaces. `None`: it may not.
#[inline(always)]
fn make_room(root: &Root, account: u32) -> Option<u32> {
    let (quota, total) = (QUOTAS.get(account)?, QUOTAS.get(ACCOUNT_TOTAL)?);
    // In turn, so that all places are taken when the first one is needed.
    let next = quota.held as u32 % VICTIMS;
    if account == ACCOUNT_HOST {
        return Some(next);
    }
    let crowded =
        total.held as i64 >= i64::from(root.conn_limit / 2) && quota.held as i64 >= i64::from(root.conn_fair_share);
    if !crowded && (quota.unassured as i64) < i64::from(root.conn_unassured) {
        return Some(next);
    }
    // At random: the newest must not be the one that always goes.
    // SAFETY: the helper has no preconditions.
    let first = unsafe { bpf_get_prandom_u32() };
    for i in 0..EVICTION_TRIES {
        let place = first.wrapping_add(i) % VICTIMS;
        if cali_evict(account, account * VICTIMS + place) != 0 {
            return Some(place);
        }
    }
    None
}

/// Closes the connection at a place of the map of candidates, if it is the account's and not assured. See [`cali_turn4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_evict(account: u32, place: u32) -> u32 {
    let Some(victim) = VICTIM_KEYS.get(place) else { return 0 };
    if let Some(key) = V4::from_victim(victim) {
        evict_key::<V4>(account, &key)
    } else {
        evict_key::<V6>(account, victim)
    }
}

#[inline(always)]
fn evict_key<F: Tables>(account: u32, key: &F::Key) -> u32 {
    let Some(conn) = F::conn(key) else { return 0 };
    // SAFETY: the entry stays readable as long as the program runs.
    let (owner, flags) = unsafe { ((*conn).account, (*conn).flags) };
    u32::from(owner == account && flags & conn_flags::ASSURED == 0 && close::<F>(key, account, flags))
}

/// The connection is assured now.
#[inline(always)]
pub(crate) fn assured(account: u32) {
    charge(account, 0, -1);
}

#[inline(always)]
fn charge(account: u32, held: i64, unassured: i64) {
    for account in [account, ACCOUNT_TOTAL] {
        if let Some(quota) = QUOTAS.get_ptr_mut(account) {
            let quota: *mut Quota = quota;
            // SAFETY: the fields are in the map's value, and aligned.
            unsafe {
                if held != 0 {
                    add(&raw mut (*quota).held, held);
                }
                if unassured != 0 {
                    add(&raw mut (*quota).unassured, unassured);
                }
            }
        }
    }
}

/// Adds atomically. The instruction that returns nothing: those that return the old value need Linux 5.12.
///
/// # Safety
/// `at` must be a valid, aligned place in a map's value.
#[inline(always)]
pub(crate) unsafe fn add(at: *mut u64, value: i64) {
    // SAFETY: as the caller promises.
    unsafe { asm!("lock *(u64 *)({at} + 0) += {value}", at = in(reg) at, value = in(reg) value) };
}
