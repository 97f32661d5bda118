//! Answering a question: at once, or by bringing what it needs until it can be answered.
//!
//! A question is a function of what is at hand that either computes its answer or says what is missing. It is asked
//! again after each piece that was brought, and holds nothing between.

use std::sync::Arc;
use std::time::Instant;

use super::observe::{Observed, Observer, Operation, Waits};
use super::pages::Held;
use super::{Answer, Mount, Need};
use crate::error::Result;
use crate::fetch::Urgency;

impl Mount {
    /// Answers `question` at once if it can, else fetches what it needs until it can.
    pub(super) fn answer<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl Fn(&Mount, &mut Held) -> std::result::Result<T, Need> + Send + 'static,
    ) -> Answer<T> {
        self.answer_and_tell(question, |_, _, _, _| {})
    }

    /// As [`Self::answer`], for work that nobody waits for: what it needs is fetched as urgently as `urgency` says, and
    /// no wait is counted.
    pub(super) async fn answer_for<T>(
        self: &Arc<Self>,
        urgency: Urgency,
        question: impl Fn(&Mount, &mut Held) -> std::result::Result<T, Need>,
    ) -> Result<T> {
        let mut held = Held::default();
        match question(self, &mut held) {
            Ok(answer) => Ok(answer),
            Err(need) => self.bring_until_answered(need, held, urgency, &mut Waits::default(), question).await,
        }
    }

    /// As [`Self::answer`]; `told` learns how it went: when it was asked (if somebody watched then), what came out,
    /// what it waited for.
    fn answer_and_tell<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl Fn(&Mount, &mut Held) -> std::result::Result<T, Need> + Send + 'static,
        told: impl FnOnce(&Mount, Option<Instant>, &Result<T>, Waits) + Send + 'static,
    ) -> Answer<T> {
        // Where nobody watches, what is answered at once costs no look at the clock.
        let asked = self.observers.any().then(Instant::now);
        let mut held = Held::default();
        let need = match question(self, &mut held) {
            Err(need @ (Need::Page(_) | Need::Blocks(_))) => need,
            answered => {
                let result = answered.map_err(|need| match need {
                    Need::Failed(e) => e,
                    Need::Page(_) | Need::Blocks(_) => unreachable!("these were taken above"),
                });
                self.metrics.answered(&result);
                told(self, asked, &result, Waits::default());
                return Answer::Ready(result);
            }
        };
        let this = self.clone();
        Answer::Later(Box::pin(async move {
            let mut waits = Waits::default();
            let result = this.bring_until_answered(need, held, Urgency::Demand, &mut waits, question).await;
            this.metrics.waited(&waits);
            this.metrics.answered(&result);
            told(&this, asked, &result, waits);
            result
        }))
    }

    async fn bring_until_answered<T>(
        self: &Arc<Self>,
        mut need: Need,
        mut held: Held,
        urgency: Urgency,
        waits: &mut Waits,
        question: impl Fn(&Mount, &mut Held) -> std::result::Result<T, Need>,
    ) -> Result<T> {
        loop {
            let began = Instant::now();
            match need {
                Need::Failed(e) => return Err(e),
                Need::Page(wanted) => {
                    let hash = wanted.hash;
                    let page = self.fetcher.get_with_source(vec![wanted], urgency).await?;
                    waits.pages += began.elapsed();
                    for (page, source) in page {
                        if urgency == Urgency::Demand {
                            self.metrics.brought(source, page.len());
                        }
                        waits.came_from(source);
                        held.keep_page(hash, page)?;
                    }
                }
                Need::Blocks(wanted) => {
                    let hashes: Vec<_> = wanted.iter().map(|w| w.hash).collect();
                    let blocks = self.fetcher.get_with_source(wanted, urgency).await?;
                    waits.blocks += began.elapsed();
                    for (hash, (block, source)) in hashes.into_iter().zip(blocks) {
                        if urgency == Urgency::Demand {
                            self.metrics.brought(source, block.len());
                        }
                        waits.came_from(source);
                        held.blocks.insert(hash, block);
                    }
                }
            }
            need = match question(self, &mut held) {
                Ok(answer) => return Ok(answer),
                Err(need) => need,
            };
        }
    }

    /// As [`Self::answer`], watched by whoever watches this mount. `operation` tells what was asked, once it is
    /// answered.
    pub(super) fn answer_watched<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl Fn(&Mount, &mut Held) -> std::result::Result<T, Need> + Send + 'static,
        operation: impl FnOnce(Option<&T>) -> Operation + Send + 'static,
    ) -> Answer<T> {
        self.answer_and_tell(question, move |this, at, result, waits| {
            if let Some(at) = at.filter(|_| this.observers.any()) {
                let (operation, succeeded) = (operation(result.as_ref().ok()), result.is_ok());
                this.observers.tell(&Observed { at, operation, waits, succeeded });
            }
        })
    }

    /// Lets `observer` see every question from now on.
    pub fn watch(&self, observer: Arc<dyn Observer>) {
        self.observers.add(observer);
    }

    /// Ends [`Self::watch`].
    pub fn unwatch(&self, observer: &Arc<dyn Observer>) {
        self.observers.remove(observer);
    }
}
