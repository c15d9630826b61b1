"""The words that the complexity strategy looks for. All case-folded. Words match whole; phrases, and everything in
scripts written without spaces, match anywhere. Add to them per domain with `ClassifierSettings.keywords`.
"""

from __future__ import annotations

TASKS: dict[str, float] = {
    "chat": 0.0,
    "extraction": 0.2,
    "question": 0.3,
    "summarisation": 0.3,
    "translation": 0.3,
    "creative": 0.5,
    "code": 0.9,
    "reasoning": 1.0,
    "math": 1.0,
}
"""How much a model's size matters for a task, in [0, 1]."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HARD_WORDS = _words(
    """
    algorithm algorithms analyse analyze architect calculate compare compute comprehensive concurrency counterexample
    critique deadlock debug debugging derive design diagnose efficient equation equations evaluate implement
    implementation infer invariant justify lemma maximize maximise migrate minimize minimise optimal optimise
    optimize optimization proof prove reasoning refactor refute rewrite rigorous rigorously simulate solve synthesise
    synthesize theorem theorems tradeoff tradeoffs verify
    analysiere analysieren begründe begründen berechne berechnen beweise beweisen beweis entwerfe entwerfen entwirf
    entwickle erörtere herleiten implementiere optimiere optimieren vergleiche vergleichen
    analyser analysez calculer calculez comparer comparez concevoir concevez démontrer démontrez démontre optimiser
    optimisez prouver prouvez raisonnement justifiez
    analiza analizar calcula calcular compara comparar demuestra demostrar deriva diseña diseñar implementa optimiza
    justifica razonamiento analise calcule demonstre prove projete otimize dimostra progetta ottimizza calcola
    докажи докажите доказать вычисли проанализируй сравни оптимизируй спроектируй обоснуй реализуй
    """
)
HARD_PHRASES = (
    "step by step",
    "step-by-step",
    "multi-step",
    "thread-safe",
    "trade-off",
    "root cause",
    "time complexity",
    "race condition",
    "in detail",
    "pros and cons",
    "edge cases",
    "if and only if",
    "schritt für schritt",
    "étape par étape",
    "paso a paso",
)
HARD_UNSPACED = (
    "证明", "證明", "証明", "推导", "導出", "分析", "设计", "設計", "优化", "優化", "最適化", "实现", "實現", "実装",
    "算法", "アルゴリズム", "计算", "計算", "比较", "比較", "调试", "デバッグ", "逐步", "段階的", "重构",
    "증명", "분석", "설계", "최적화", "구현", "알고리즘", "계산", "비교", "디버그",
)  # fmt: skip

# Only words that mean programming and nothing else: prose has functions, classes and programs too.
CODE_WORDS = _words(
    """
    api asyncio backend bash c# c++ coding compiler css dataframe docker endpoint frontend golang html java javascript
    json kotlin kubernetes linux numpy pandas php python recursion regex ruby segfault sql stacktrace swift terraform
    traceback typescript unittest webpack yaml
    código код функцию
    """
)

_TASK_WORDS: dict[str, frozenset[str]] = {
    "summarisation": _words(
        """
        summarise summarize summary summaries tldr condense shorten zusammenfassen zusammenfassung résume résumer
        résumez resume resumir resumen resumo riassumi riassunto кратко резюме
        """
    ),
    "translation": _words(
        "translate translation translates übersetze übersetzen traduis traduire traduisez traduce traducir traduza "
        "traduci переведи переведите перевод"
    ),
    "extraction": _words(
        """
        extract classify categorise categorize label tag parse identify list find highlight entities sentiment
        extrahiere klassifiziere extrais extraire extrae clasifica estrai извлеки
        """
    ),
    "creative": _words(
        """
        poem story haiku lyrics song novel limerick joke slogan tagline screenplay essay blog letter email gedicht
        geschichte poème histoire poema cuento historia poesia racconto стихотворение рассказ
        """
    ),
    "code": _words(
        """
        debug refactor code function python javascript typescript java rust golang sql regex script program compile bug
        traceback implement unittest api c++ c# class endpoint код функцию функция programm funktion fonction función
        """
    ),
    "reasoning": _words(
        """
        why explain reason analyse analyze compare evaluate justify assess argue plan strategy design infer deduce
        diagnose puzzle riddle warum erkläre analysiere vergleiche pourquoi expliquer expliquez explique explica compara
        perché spiega почему объясни сравни
        """
    ),
    "math": _words(
        """
        prove proof theorem lemma integral derivative equation equations solve calculate compute polynomial
        integer integers percent algebra geometry beweise beweis berechne gleichung
        démontrer démontrez calculer demuestra calcula ecuación докажи докажите вычисли реши
        """
    ),
}
TASK_OF_WORD: dict[str, str] = {word: task for task, words in _TASK_WORDS.items() for word in words}
TASK_OF_PHRASE: dict[str, str] = {
    "how many": "math",
    "how much": "math",
    "tl;dr": "summarisation",
    "wie viele": "math",
    "combien": "math",
    "cuántos": "math",
}
TASK_OF_UNSPACED: dict[str, str] = {
    **dict.fromkeys(("总结", "總結", "摘要", "概括", "要約", "요약"), "summarisation"),
    **dict.fromkeys(("翻译", "翻譯", "翻訳", "번역"), "translation"),
    **dict.fromkeys(("提取", "抽出", "分类", "分類", "추출"), "extraction"),
    **dict.fromkeys(("诗", "詩", "故事", "小说", "物語", "이야기"), "creative"),
    **dict.fromkeys(("代码", "代碼", "コード", "函数", "関数", "编程", "脚本", "코드", "함수"), "code"),
    **dict.fromkeys(("为什么", "為什麼", "解释", "解釋", "分析", "比较", "なぜ", "説明", "왜", "설명"), "reasoning"),
    **dict.fromkeys(("证明", "證明", "証明", "计算", "計算", "方程", "积分", "積分", "증명", "계산", "多少"), "math"),
}
